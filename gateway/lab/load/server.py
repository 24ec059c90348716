"""Both ends of the outside in one: a SOCKS5 server that is itself what it connects to.

``python -m gateway.lab.load.server COUNTERS IPV4 IPV6 PORT`` serves SOCKS5 (RFC 1928, without
authentication) on PORT of these two addresses, and the services below on every address; once
it does, it writes ``ready``. Several may share the ports. What a SOCKS client asks for is
served on the same connection, by the port asked for: no relay of the server's own stands
behind the one that is measured. In bulk, data is never copied to be sent (sendfile from
memory) nor to be read (``MSG_TRUNC``, tcp(7)).
"""

from __future__ import annotations

import argparse
import os
import resource
import select
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from gateway.lab.load.counters import Counters

DISCARD: Final = 9
SOURCE: Final = 19
ECHO: Final = 7
#: Many, so that a client's ports last: a port and an address pair are spent for a minute each.
ANSWER: Final = range(8000, 8016)

#: What each counter of the server counts: bytes discarded, connections that came through SOCKS
#: and directly since the start, and connections that are open now.
COUNTERS: Final = ("received", "socks", "direct", "open")
RECEIVED, SOCKS, DIRECT, OPEN = range(4)

REQUEST: Final = b"GET / HTTP/1.0\r\n\r\n"
_BODY: Final = b"." * 100
RESPONSE: Final = b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)

BACKLOG: Final = 4096
READY: Final = "ready"

#: Read or sent in one call.
CHUNK: Final = 4 << 20
#: A sink is woken when this much waits, not for each packet.
LOW_WATER: Final = 256 << 10

ECHO_BYTES: Final = 64 << 10

_NO_AUTHENTICATION: Final = b"\x05\x00"
_SUCCEEDED: Final = b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00"
_CLOSED: Final = select.EPOLLHUP | select.EPOLLERR

Step = Callable[["Server", socket.socket, int], "Step | None"]


class Server:
    """One epoll loop. Each connection is a socket and the step that its next event runs."""

    def __init__(self, counters: Counters) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, tuple[socket.socket, Step]] = {}
        self._listeners: dict[int, tuple[socket.socket, Step]] = {}
        self.count = counters.values
        self.buffer = bytearray(CHUNK)
        self.source = source_file()

    def listen(self, host: str, port: int, first: Step) -> None:
        """Accept on ``host`` and ``port``; ``first`` is the step of each new connection."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        sock = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=True)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited
        self._listeners[sock.fileno()] = (sock, first)
        self._epoll.register(sock, select.EPOLLIN)

    def run(self) -> None:
        """Serve until killed."""
        connections, listeners = self._connections, self._listeners
        while True:
            for fd, events in self._epoll.poll():
                if fd in connections:
                    self._advance(fd, events)
                elif fd in listeners:
                    self._accept(*listeners[fd])

    def watch(self, sock: socket.socket, events: int) -> None:
        """Be told of other events of a connection from now on."""
        self._epoll.modify(sock, events)

    def _accept(self, listener: socket.socket, first: Step) -> None:
        for _ in range(64):
            try:
                fd, _ = listener._accept()  # type: ignore[attr-defined]
            except BlockingIOError:
                return
            # Given all arguments, socket() asks the kernel nothing; nothing here asks the family.
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
            sock.setblocking(False)
            self._connections[fd] = (sock, first)
            self._epoll.register(fd, select.EPOLLIN)
            self.count[OPEN] += 1
            self.count[SOCKS if first is greet else DIRECT] += 1

    def _advance(self, fd: int, events: int) -> None:
        sock, step = self._connections[fd]
        try:
            following = None if events & _CLOSED else step(self, sock, events)
        except BlockingIOError:
            return
        except OSError:
            following = None  # a reset is how the clients of a bulk measurement end
        if following is None:
            del self._connections[fd]
            sock.close()
            self.count[OPEN] -= 1
        elif following is not step:
            self._connections[fd] = (sock, following)


def greet(_: Server, sock: socket.socket, __: int) -> Step | None:
    """What methods a client offers (RFC 1928 section 3); its request may follow at once."""
    data = sock.recv(512)
    if len(data) < 3 or data[0] != 5:
        return None
    sock.send(_NO_AUTHENTICATION)
    rest = data[2 + data[1] :]
    return _serve(sock, rest) if rest else request


def request(_: Server, sock: socket.socket, __: int) -> Step | None:
    """What a SOCKS client asks for (section 4)."""
    return _serve(sock, sock.recv(512))


def _serve(sock: socket.socket, asked: bytes) -> Step | None:
    """Become what was asked for; the last two bytes of any request are the port."""
    first = service(int.from_bytes(asked[-2:], "big"))
    if asked[:2] != b"\x05\x01" or first is None:
        return None
    sock.send(_SUCCEEDED)
    return first


def discard(server: Server, sock: socket.socket, _: int) -> Step | None:
    """Read to the end (RFC 863)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LOW_WATER)
    return discard_more(server, sock, _)


def discard_more(server: Server, sock: socket.socket, _: int) -> Step | None:
    """The same, once the socket is set up for it."""
    count = sock.recv_into(server.buffer, CHUNK, socket.MSG_TRUNC)
    server.count[RECEIVED] += count
    return discard_more if count else None


def source(server: Server, sock: socket.socket, _: int) -> Step | None:
    """After the client's first byte, send without end (as RFC 864, in bulk)."""
    if not sock.recv(64):
        return None
    server.watch(sock, select.EPOLLOUT)
    return source_more


def source_more(server: Server, sock: socket.socket, _: int) -> Step | None:
    """The same, once the client has asked."""
    os.sendfile(sock.fileno(), server.source, 0, CHUNK)
    return source_more


def echo(server: Server, sock: socket.socket, _: int) -> Step | None:
    """Send back what comes (RFC 862), and read no more before it is sent."""
    data = sock.recv(ECHO_BYTES)
    sent = sock.send(data)
    if sent < len(data):
        server.watch(sock, select.EPOLLOUT)
        return partial(echo_rest, data[sent:])
    return echo if data else None


def echo_rest(rest: bytes, server: Server, sock: socket.socket, _: int) -> Step:
    """The same, while the peer takes less than was read."""
    sent = sock.send(rest)
    if sent < len(rest):
        return partial(echo_rest, rest[sent:])
    server.watch(sock, select.EPOLLIN)
    return echo


def answer(_: Server, sock: socket.socket, __: int) -> None:
    """One short answer, and the end with it: answer and FIN leave in one packet."""
    if sock.recv(512):
        sock.send(RESPONSE, socket.MSG_MORE)


def service(port: int) -> Step | None:
    """The first step of the service on ``port``."""
    if port in ANSWER:
        return answer
    return {DISCARD: discard, SOURCE: source, ECHO: echo}.get(port)


def source_file() -> int:
    """A file of ``CHUNK`` bytes in memory, to send from."""
    fd = os.memfd_create("source")
    os.write(fd, bytes(CHUNK))
    return fd


def raise_descriptor_limit() -> None:
    """As many descriptors as this process may have."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(prog="gateway.lab.load.server", description=__doc__)
    parser.add_argument("counters", type=Path)
    parser.add_argument("hosts", metavar="ADDRESS", nargs=2)
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    raise_descriptor_limit()
    server = Server(Counters(arguments.counters, COUNTERS))
    for port in (DISCARD, SOURCE, ECHO, *ANSWER):
        first = service(port)
        assert first is not None
        for host in ("0.0.0.0", "::"):
            server.listen(host, port, first)
    for host in arguments.hosts:
        server.listen(host, arguments.port, greet)
    print(READY, flush=True)
    server.run()


if __name__ == "__main__":
    main()
