"""UDP servers and clients of the lab, and a SOCKS server whose manners a test can choose."""

from __future__ import annotations

import itertools
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from traffic import TIMEOUT_S, address, new_socket

from gateway.flow import Endpoint
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import POLL_S, wait_until
from gateway.wire.socks5_udp import decode_header, encode_header, header_size

#: Makes what a datagram of a peer is answered with; None: with nothing.
Answer = Callable[[bytes, Any], bytes | None]

ECHO = 9999
#: More than a link of MTU 1280 takes, and less than others do.
LONG = bytes(1400)
#: Where servers of a lab are told of their client: ``address port data``.
TELL = 9998
#: Of clients: below those that kernels choose, each once. A flow by a port that somebody has had
#: before would be taken for his.
_PORTS = itertools.count(20_000)


def seen_by(answer: bytes) -> tuple[str, int, bytes]:
    """What a server on ``TELL`` says: the client's address and port, and the data."""
    host, port, data = answer.split(b" ", 2)
    return host.decode(), int(port), data


def tell(data: bytes, peer: Any) -> bytes:
    """Whose datagram it is, and the datagram."""
    return f"{peer[0]} {peer[1]} ".encode() + data


def echo(data: bytes, peer: Any) -> bytes:
    """The datagram."""
    del peer
    return data


class Served:
    """UDP sockets of a machine that are answered by a thread until the end."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(
        self,
        machine: Machine,
        host: str,
        port: int,
        answer: Answer = echo,
    ) -> socket.socket:
        """A socket bound there."""
        sock = new_socket(machine, host, socket.SOCK_DGRAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((host, port))
        sock.setblocking(False)
        self._selector.register(sock, selectors.EVENT_READ, answer)
        self._wake.send(b"!")
        return sock

    def close(self) -> None:
        """End all."""
        self._wake.close()
        self._thread.join(TIMEOUT_S)
        for key in list(self._selector.get_map().values()):
            key.fileobj.close()  # type: ignore[union-attr]
        self._selector.close()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._woken:
                    if not sock.recv(1):
                        return
                    continue
                with suppress(OSError):
                    while True:
                        data, peer = sock.recvfrom(70_000)
                        answer = key.data(data, peer)
                        if answer is not None:
                            sock.sendto(answer, peer)


@contextmanager
def served() -> Iterator[Served]:
    """UDP servers for a while."""
    servers = Served()
    try:
        yield servers
    finally:
        servers.close()


@contextmanager
def answering(lab: Lab, answers: Mapping[int, Answer]) -> Iterator[Served]:
    """Servers on these ports of every target on the internet, for a while."""
    with served() as servers:
        for pair in lab.topology.targets.values():
            for host in pair:
                for port, answer in answers.items():
                    servers.add(lab.internet, host, port, answer)
        yield servers


@contextmanager
def talking(machine: Machine, host: str, port: int = ECHO) -> Iterator[socket.socket]:
    """A connected UDP socket: it hears nobody but ``host``, and of ICMP errors."""
    with new_socket(machine, host, socket.SOCK_DGRAM) as sock:
        sock.bind(("", next(_PORTS)))
        sock.connect((host, port))
        yield sock


def ask(sock: socket.socket, data: bytes = b"hello") -> bytes:
    """Send a datagram and wait for the answer."""
    sock.send(data)
    return sock.recv(70_000)


def refused(sock: socket.socket) -> None:
    """Until the sender hears that nobody is there.

    Asked again, as ICMP errors may be lost, and kernels send no more of them than their limits
    allow (``icmp_ratelimit``, ``icmp_msgs_per_sec``).
    """
    sock.settimeout(1.0)

    def told() -> bool:
        try:
            raise AssertionError(f"it was answered: {ask(sock)!r}")
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False

    wait_until(told, "the ICMP error")


def long_echoed(sock: socket.socket) -> bool:
    """Whether a long datagram comes back, within a moment."""
    sock.settimeout(0.3)
    try:
        return ask(sock, LONG) == LONG
    except TimeoutError:
        return False


class Relay:
    """A SOCKS5 server for UDP on a machine, one client after another.

    ``bound`` is what it says that its relay's address is; ``change`` makes of each answer
    the datagrams that are sent for it. ``controls`` are its control connections, ``asked`` the
    targets of datagrams, ``names`` the addresses of those that are names.
    """

    def __init__(self, machine: Machine, host: str, port: int = 1080) -> None:
        self.host = host
        self.bound = Endpoint(host, 0)
        self.change: Callable[[bytes], list[bytes]] = lambda datagram: [datagram]
        self.controls: list[socket.socket] = []
        self.asked: list[Endpoint] = []
        self.names: dict[str, str] = {}
        self._machine = machine
        self._listener = new_socket(machine, host)
        self._listener.settimeout(None)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(64)
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._accept)

    def close(self) -> None:
        """End all, what somebody is about to open as well."""
        while self._threads:
            for sock in (self._listener, *self.controls, *self._socks):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            thread = self._threads[-1]
            thread.join(POLL_S)
            if not thread.is_alive():
                self._threads.remove(thread)
        for sock in (self._listener, *self.controls, *self._socks):
            sock.close()

    def _run(self, work: Callable[..., None], *given: object) -> None:
        thread = threading.Thread(target=work, args=given, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                control, _ = self._listener.accept()
                self.controls.append(control)
                self._run(self._serve, control)

    def _serve(self, control: socket.socket) -> None:
        with suppress(OSError, IndexError):
            control.recv(100)
            control.sendall(b"\x05\x00")
            if control.recv(100)[1] != 3:
                control.sendall(bytes.fromhex("05 07 00 01 00000000 0000"))
                return
            relay = new_socket(self._machine, self.host, socket.SOCK_DGRAM)
            self._socks.append(relay)
            relay.settimeout(None)
            relay.bind((self.host, 0))
            bound = self.bound._replace(port=relay.getsockname()[1])
            control.sendall(b"\x05\x00\x00" + encode_header(bound)[3:])
            self._run(self._relay, relay)
            control.recv(1)
            relay.shutdown(socket.SHUT_RDWR)

    def _relay(self, relay: socket.socket) -> None:
        client = None
        onward = {
            family: new_socket(self._machine, host, socket.SOCK_DGRAM)
            for family, host in ((4, "0.0.0.0"), (6, "::"))
        }
        self._socks += onward.values()
        with suppress(OSError):
            while True:
                datagram, peer = relay.recvfrom(70_000)
                if not datagram:
                    return
                client = client or peer
                size = header_size(datagram)
                target = decode_header(datagram[:size])
                self.asked.append(target)
                target = target._replace(host=self.names.get(target.host, target.host))
                sock = onward[6 if ":" in target.host else 4]
                sock.sendto(datagram[size:], target)
                answer, far = sock.recvfrom(70_000)
                if far is None:  # it was shut down
                    return
                for changed in self.change(encode_header(Endpoint(*far[:2])) + answer):
                    relay.sendto(changed, client)


def stun_request() -> bytes:
    """A binding request (RFC 8489 section 5)."""
    return struct.pack("!HHI12s", 1, 0, 0x2112A442, b"gateway-lab!")


def stun_answer(data: bytes, peer: Any) -> bytes | None:
    """The client's address, as XOR-MAPPED-ADDRESS (section 14.2)."""
    kind, _, cookie = struct.unpack_from("!HHI", data)
    if (kind, cookie) != (1, 0x2112A442):
        return None
    six = ":" in peer[0]
    packed = socket.inet_pton(socket.AF_INET6 if six else socket.AF_INET, peer[0])
    mask = (data[4:20])[: len(packed)]
    mapped = bytes(a ^ b for a, b in zip(packed, mask, strict=True))
    value = struct.pack("!BBH", 0, 2 if six else 1, peer[1] ^ 0x2112) + mapped
    attribute = struct.pack("!HH", 0x0020, len(value)) + value
    return struct.pack("!HH", 0x0101, len(attribute)) + data[4:20] + attribute


def stun_mapped(answer: bytes) -> tuple[str, int]:
    """The address in such an answer."""
    _, kind, port = struct.unpack_from("!BBH", answer, 24)
    family, size = (socket.AF_INET6, 16) if kind == 2 else (socket.AF_INET, 4)
    mapped = bytes(a ^ b for a, b in zip(answer[28 : 28 + size], answer[4:20], strict=False))
    return socket.inet_ntop(family, mapped), port ^ 0x2112


def own(machine: Machine, host: str) -> str:
    """The machine's own address of the family of ``host``."""
    return address(machine, 6 if ":" in host else 4)
