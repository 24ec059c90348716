"""Flows that are tried in the lab, and what becomes of each: TCP, UDP, and echo."""

from __future__ import annotations

import errno
import json
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol, Self, TypeVar

from gateway.kernel.netns import entered
from gateway.lab.capture import Tun
from gateway.lab.machine import Machine

_POLL_S: Final = 0.01
_REQUEST: Final = b"GET /whoami HTTP/1.0\r\n\r\n"
_HTTP: Final = 80
#: Nobody else listens there.
_UDP: Final = 9997
_GRE: Final = 47
#: So often a packet of an unknown protocol may be forwarded.
HOPS: Final = 8
_LINGER_RESET: Final = struct.pack("ii", 1, 0)

_Name = TypeVar("_Name")


class Outcome(StrEnum):
    """What became of a connection. The values stand in the JSON."""

    DIRECT = "arrives"
    LOOP = "loops"
    REFUSED = "refused"
    SILENT = "no answer"


@dataclass(frozen=True, slots=True)
class Seen:
    """The outcome, and what the server saw, or the error."""

    outcome: Outcome
    detail: str = ""


class Trial(Protocol):
    """One flow to ``host``."""

    host: str

    def connect(self) -> None:
        """Begin."""

    def step(self) -> Seen | None:
        """Go on as far as it goes without waiting; what became of it, once it is over."""

    def close(self) -> None:
        """End it, so that nobody goes on trying."""


def try_all(
    client: Machine,
    targets: Mapping[_Name, str],
    tun: Tun | None,
    how: Callable[[Machine, str], Trial] | None = None,
    timeout_s: float = 20.0,
) -> dict[_Name, Seen]:
    """Try each target (an address, by name), all at once: ask its HTTP server, if not said.

    Whose first packet comes out of the TUN loops.
    """
    if tun is not None:
        tun.caught()
    flows = {name: (how or Asking)(client, host) for name, host in targets.items()}
    seen: dict[_Name, Seen] = {}
    deadline = time.monotonic() + timeout_s
    try:
        for flow in flows.values():
            flow.connect()
        while len(seen) < len(flows) and time.monotonic() < deadline:
            caught = tun.caught() if tun is not None else set()
            for name, flow in flows.items():
                if name not in seen:
                    result = Seen(Outcome.LOOP) if flow.host in caught else flow.step()
                    if result is not None:
                        seen[name] = result
            time.sleep(_POLL_S)
    finally:
        for flow in flows.values():
            flow.close()
    return {name: seen.get(name, Seen(Outcome.SILENT)) for name in flows}


class Asking:
    """One HTTP request, reset at the end; from a device or an address, if one is given."""

    def __init__(self, client: Machine, host: str, *, device: str = "", source: str = "") -> None:
        self.host = host
        self._sock = _socket(client, host, socket.SOCK_STREAM)
        if device:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if source:
            self._sock.bind((source, 0))
        self._asked = False
        self._answer = b""

    def connect(self) -> None:
        """Begin."""
        self._sock.connect_ex((self.host, _HTTP))

    def step(self) -> Seen | None:
        """Go on as far as it goes without waiting; what became of it, once it is over."""
        try:
            if not self._asked:
                self._sock.send(_REQUEST)
                self._asked = True
            while part := self._sock.recv(4096):
                self._answer += part
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return None  # not connected yet
            return Seen(Outcome.REFUSED, error.strerror or "")
        body = self._answer.partition(b"\r\n\r\n")[2]
        if not body:
            return Seen(Outcome.REFUSED, "ended without an answer")
        return Seen(Outcome.DIRECT, str(json.loads(body)["peer"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Reset it."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self._sock.close()


class Sending:
    """One datagram, to a server of its own on the machine ``server``, which has the address."""

    def __init__(self, server: Machine, client: Machine, host: str) -> None:
        self.host = host
        self._server = _socket(server, host, socket.SOCK_DGRAM)
        self._server.bind((host, _UDP))
        self._sock = _socket(client, host, socket.SOCK_DGRAM)

    def connect(self) -> None:
        """Send it."""
        self._sock.connect((self.host, _UDP))
        self._sock.send(b"hello")

    def step(self) -> Seen | None:
        """Whether it has arrived, or an ICMP error has."""
        try:
            return Seen(Outcome.DIRECT, str(self._server.recvfrom(64)[1][0]))
        except BlockingIOError:
            pass
        return _refusal(self._sock)

    def close(self) -> None:
        """End both."""
        self._server.close()
        self._sock.close()


class Pinging:
    """One echo request, by ping(8): an answer, or an ICMP error."""

    def __init__(self, client: Machine, host: str) -> None:
        self.host = host
        self._command = client.inside("ping", "-n", "-c", "1", "-W", "5", host)
        self._process: subprocess.Popen[str] | None = None

    def connect(self) -> None:
        """Begin."""
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def step(self) -> Seen | None:
        """Once ping has ended: it does with an answer, an error, or in vain."""
        assert self._process is not None
        if self._process.poll() is None:
            return None
        said = self._process.communicate()[0]
        if " 1 received" in said:
            return Seen(Outcome.DIRECT)
        told = next((line for line in said.splitlines() if "nreachable" in line), "")
        return Seen(Outcome.REFUSED if told else Outcome.SILENT, told)

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            with self._process:  # collected and closed, where it ended unseen, too
                pass


class Unknown:
    """A packet of a protocol that no proxy carries (GRE), which may be forwarded ``HOPS`` times."""

    def __init__(self, client: Machine, host: str) -> None:
        self.host = host
        self._sock = _socket(client, host, socket.SOCK_RAW, _GRE)
        if ":" in host:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, HOPS)
        else:
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, HOPS)

    def connect(self) -> None:
        """Send it."""
        self._sock.connect((self.host, 0))
        self._sock.send(bytes(8))

    def step(self) -> Seen | None:
        """Whether an ICMP error has come."""
        return _refusal(self._sock)

    def close(self) -> None:
        """End it."""
        self._sock.close()


def _refusal(sock: socket.socket) -> Seen | None:
    """The ICMP error that has come."""
    try:
        sock.recv(64)
    except BlockingIOError:
        return None
    except OSError as error:
        return Seen(Outcome.REFUSED, error.strerror or "")
    return None


def _socket(machine: Machine, host: str, kind: int, protocol: int = 0) -> socket.socket:
    with entered(machine.namespace):
        sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind, protocol)
    sock.setblocking(False)
    return sock


def settle(
    look: Callable[[], dict[_Name, Seen]],
    expected: Mapping[_Name, Outcome],
    timeout_s: float = 60.0,
) -> dict[_Name, Seen]:
    """Look again until all is as expected; a loop that is not expected ends it at once."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = look()
        wrong = {name for name, outcome in expected.items() if seen[name].outcome is not outcome}
        looped = any(seen[name].outcome is Outcome.LOOP for name in wrong)
        if not wrong or looped or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)
