"""Every socket of the data plane is opened here, and nowhere else.

One factory makes the outbound ones, so that none can miss the bypass mark: a
single unmarked socket is a routing loop. The constants of <linux/in.h> and
<linux/netfilter_ipv4.h> that Python does not export live here too.

Sockets of flows are ``socket.SocketType``, the class below ``socket.socket``: it can do
the same at half the memory, and none of it is Python code.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from socket import SocketType
from typing import Literal

from gateway.errors import CapabilityError
from gateway.flow import Endpoint
from gateway.kernel import netns
from gateway.kernel.limits import require_for_flow
from gateway.kernel.own_sockets import OwnSockets
from gateway.kernel.sockaddr import endpoint_of
from gateway.marks import Mark

IP_TRANSPARENT = 19
IP_PKTINFO = 8
IP_BIND_ADDRESS_NO_PORT = 24
IPV6_TRANSPARENT = 75
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50
IP_RECVTOS = 13
IPV6_RECVTCLASS = 66
SO_ORIGINAL_DST = 80
IP6T_SO_ORIGINAL_DST = 80
TCP_FASTOPEN_CONNECT = 30

BACKLOG = 4096

_LINGER_RESET = struct.pack("ii", 1, 0)
#: Seconds of silence before a peer is asked, and between the askings; how many those are.
_KEEP_IDLE_S, _KEEP_INTERVAL_S, _KEEP_PROBES = 30, 10, 3
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
#: Addresses of which one object is kept for all flows that have them.
_SHARED = 1024
_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK)


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """How an outbound's sockets leave: by device, from a source address, or as someone else.

    ``sources``: an address to bind for each family that is used; other families are refused
    then. ``transparent`` binds it even where it is not an address of this machine. ``netns``:
    the network namespace (of ip-netns(8)) that the sockets belong to.
    ``speaks_first``: whoever connects sends at once, so the last packet of TCP's handshake
    waits for that data and leaves with it. ``fast_open``: that data goes with the SYN, once
    the server has given us a cookie (RFC 7413). ``congestion``: other TCP congestion control
    than the system's, by name. ``mark``: bits of somebody else's that go beside ours.
    """

    device: str | None = None
    sources: tuple[str, ...] = ()
    transparent: bool = False
    netns: str | None = None
    speaks_first: bool = False
    fast_open: bool = False
    congestion: str | None = None
    mark: Mark | None = None


def family_of(host: str) -> Literal[socket.AddressFamily.AF_INET, socket.AddressFamily.AF_INET6]:
    """Address family of an address in text form."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class SocketFactory:
    """Opens every socket that leaves this machine, with the bypass mark on it.

    ``mark`` None exists for the lab alone, which shows the loop that it prevents. ``opened``:
    those that go to somebody, for the loop detector.
    """

    def __init__(self, mark: Mark | None) -> None:
        self._mark = mark
        self.opened = OwnSockets()

    def connect_tcp(self, remote: Endpoint, options: SocketOptions) -> SocketType:
        """Begin a TCP connect to an address (not a name); never blocks (connect(2), EINPROGRESS).

        Raises ``OSError`` where the kernel refuses at once (no route, no such device,
        no descriptors).
        """
        family = family_of(remote.host)
        sock = self.open(family, socket.SOCK_STREAM, options)
        try:
            _set_stream_options(sock)
            _set_connect_options(sock, options)
            code = sock.connect_ex(remote)
            if code and code not in _IN_PROGRESS:
                raise OSError(code, os.strerror(code))
            self.note(sock, remote)
        except BaseException:
            sock.close()
            raise
        return sock

    def note(self, sock: SocketType, remote: Endpoint | None) -> None:
        """Know a socket that has its end now. ``remote`` as of ``OwnSockets``."""
        if self.opened.wanted:
            self.opened.note(sock, local_endpoint(sock), remote)

    def open(
        self,
        family: int,
        kind: int,
        options: SocketOptions,
        protocol: int = 0,
        *,
        brief: bool = False,
    ) -> SocketType:
        """A non-blocking socket that leaves as ``options`` say. Raises ``OSError``.

        EMFILE also where only descriptors are left that flows must not have (``limits``), unless
        it is a ``brief`` one, which is closed at once.
        """
        kind |= socket.SOCK_NONBLOCK
        if options.netns is None:
            sock = SocketType(family, kind, protocol)
        else:
            with netns.entered(options.netns):
                sock = SocketType(family, kind, protocol)
        try:
            if not brief:
                require_for_flow(sock.fileno())
            self._prepare(sock, family, options)
        except BaseException:
            sock.close()
            raise
        return sock

    def _prepare(self, sock: SocketType, family: int, options: SocketOptions) -> None:
        # The mark first: from here on no packet of this socket can be diverted.
        mark = (self._mark.value if self._mark else 0) | (options.mark.value if options.mark else 0)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if options.device is not None:
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_BINDTODEVICE, options.device.encode() + b"\0"
            )
        if options.sources:
            source = _source(options.sources, family)
            if options.transparent:
                set_transparent(sock, family)
            if sock.type == socket.SOCK_STREAM:
                # The port is chosen at connect(2): many flows may share a source port.
                sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))


def _source(sources: tuple[str, ...], family: int) -> str:
    for source in sources:
        if family_of(source) == family:
            return source
    # An unbound socket would take a way that nobody asked for.
    raise OSError(errno.EADDRNOTAVAIL, "no source address of this family to bind")


def resolve(host: str) -> tuple[str, ...]:
    """Addresses of an upstream, in the resolver's order; none where it does not resolve now.

    Blocks. The resolver's own queries are not marked: upstreams given by address are the
    ones that need nobody.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def as_blocking(sock: SocketType, timeout_s: float) -> socket.socket:
    """The same connection for a library that waits, each time at most so long."""
    blocking = socket.socket(sock.family, socket.SOCK_STREAM, 0, fileno=sock.detach())
    blocking.settimeout(timeout_s)
    return blocking


def open_listener(
    host: str, port: int, *, transparent: bool, shared: bool = True, congestion: str | None = None
) -> SocketType:
    """A non-blocking TCP listener for diverted flows on ``host`` and ``port``.

    ``shared``: with the other workers, and with the listener that a reload replaces.
    ``congestion``: as of ``SocketOptions``, for all that it accepts.
    Raises ``CapabilityError`` where the port is taken or the privilege is missing.
    """
    family = family_of(host)
    with new_listener(_STREAM, host, port) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # All these are inherited by what is accepted: fewer system calls per flow.
        _set_stream_options(sock)
        if congestion is not None:
            set_congestion(sock, congestion)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVTCLASS, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVTOS, 1)
        if transparent:
            set_transparent(sock, family)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    return sock


@contextmanager
def new_listener(kind: int, host: str, port: int) -> Iterator[SocketType]:
    """A socket that is being made to listen there; where that fails, it is closed.

    Raises ``CapabilityError`` then, which names the cure.
    """
    try:
        sock = SocketType(family_of(host), kind)
    except OSError as error:
        raise _listener_error(host, port, error) from error
    try:
        yield sock
    except OSError as error:
        sock.close()
        raise _listener_error(host, port, error) from error


def _listener_error(host: str, port: int, error: OSError) -> CapabilityError:
    """What a listener was refused for, and the cure."""
    where = Endpoint(host, port)
    if error.errno == errno.EADDRINUSE:
        return CapabilityError(
            f"cannot listen on {where}: the port is taken",
            f"stop the other program (ss -tulnp 'sport = :{port}' names it), or set inbound.port",
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        return CapabilityError(
            f"cannot listen on {where}: {error.strerror}",
            "run as root, or with CAP_NET_ADMIN or CAP_NET_RAW",
        )
    full = error.errno in (errno.EMFILE, errno.ENFILE)
    cure = "raise the limit of open files (LimitNOFILE= of systemd, ulimit -n)" if full else ""
    return CapabilityError(f"cannot listen on {where}: {error.strerror}", cure)


def _set_stream_options(sock: SocketType) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Urgent data is passed on as part of the stream; otherwise recv(2) leaves its byte out.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def _set_connect_options(sock: SocketType, options: SocketOptions) -> None:
    if options.congestion is not None:
        set_congestion(sock, options.congestion)
    if options.speaks_first:
        # On a socket that connects: send no ACK by itself (tcp_rcv_synsent_state_process of
        # net/ipv4/tcp_input.c). Without data the kernel still sends it, 0.2 s later.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
    if options.fast_open:
        # Refused where net.ipv4.tcp_fastopen lacks bit 0; then it is an ordinary connect.
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)


def throwaway() -> socket.socket:
    """A socket to try options on: it is never connected."""
    return socket.socket(socket.AF_INET, socket.SOCK_STREAM)


def may_mark() -> bool:
    """Whether this thread may set ``SO_MARK``."""
    with throwaway() as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, 0)
        except PermissionError:
            return False
    return True


def set_congestion(sock: SocketType, name: str) -> None:
    """Give a connection, or a listener for all that it accepts, its TCP congestion control.

    Raises ``OSError`` where the kernel does not have it, or we may not use it.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())


def set_transparent(sock: SocketType, family: int) -> None:
    """Let a socket have an address that is not this machine's (ip(7)). Raises ``OSError``."""
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


def endpoint(address: tuple[str, int] | tuple[str, int, int, int]) -> Endpoint:
    """A socket address as an ``Endpoint``, without the zone of a link-local one."""
    return Endpoint(_bare_host(address[0]), address[1])


def _bare_host(host: str) -> str:
    return host.partition("%")[0] if "%" in host else host


@lru_cache(maxsize=_SHARED)
def _shared_text(host: str) -> str:
    """One object for each of the LAN's hosts, instead of one for each flow."""
    return host


#: One object for each of the destinations that flows have in common.
_shared_endpoint = lru_cache(maxsize=_SHARED)(Endpoint)


def accept(listener: SocketType) -> tuple[SocketType, Endpoint]:
    """Accept one connection, non-blocking, with its peer.

    The same call as ``socket.accept``, without its two objects and its look at the default
    time-out. Raises ``OSError`` as accept(2) does.
    """
    fd, address = listener._accept()  # type: ignore[attr-defined]
    sock = SocketType(listener.family, _STREAM, 0, fd)
    sock.setblocking(False)
    return sock, Endpoint(_shared_text(_bare_host(address[0])), address[1])


def local_endpoint(sock: SocketType) -> Endpoint:
    """The local address: of a flow that TPROXY diverted, its original destination."""
    address = sock.getsockname()
    return _shared_endpoint(_bare_host(address[0]), address[1])


def nat_destination(sock: SocketType) -> Endpoint:
    """Where a redirected flow was going before NAT rewrote it (``SO_ORIGINAL_DST``).

    Raises ``OSError`` where conntrack does not know the flow.
    """
    if sock.family == socket.AF_INET6:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST, 28)
    else:
        raw = sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
    return _shared_endpoint(*endpoint_of(raw))


def pending_error(sock: SocketType) -> int:
    """``SO_ERROR``: how a non-blocking connect ended; 0 for well (or not yet)."""
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def reset_on_close(sock: SocketType) -> None:
    """Make close(2) send a RST instead of a FIN (socket(7), ``SO_LINGER`` of 0)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)


def keep_alive(sock: SocketType) -> None:
    """Have the kernel ask a peer that is silent whether it is there (tcp(7)).

    One that has gone without a word ends the connection a minute after it was last heard.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _KEEP_PROBES)
