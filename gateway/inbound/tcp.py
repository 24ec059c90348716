"""The TCP listeners: accept what the kernel diverted, and recover where it was going.

The system calls of a flow that TPROXY diverted and that a SOCKS5 server carries: one message
each way, then the client's end. A test compares the list with what strace(1) sees.

    accept4 1  the client's leg; the listener's options come with it
    getsockname 2  where it was going; and Python looks at a descriptor that it is handed
    ioctl 1  O_NONBLOCK, which Python's accept4 does not ask for
    epoll_ctl 2  each leg, once, for all edges; closing it takes it out again
    socket 1  the upstream's leg, non-blocking from the start
    setsockopt 4  SO_MARK, TCP_NODELAY, SO_OOBINLINE, and no lone ACK (TCP_DEFER_ACCEPT)
    connect 1  to the server; that it went well, the edge itself says
    sendto 4  greeting and request (one, where the server bears it), and the two messages
    recvfrom 6  method and reply, the two messages, and the end of each leg
    shutdown 1  the client's FIN, passed on
    close 2  both legs

Beside these there are calls for all flows that are ready at once: epoll_wait, and accept4 and
recvfrom where they find nothing more.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import partial
from socket import SocketType
from typing import Final, Literal, Protocol

from gateway.flow import Endpoint
from gateway.inbound.listening import open_all
from gateway.kernel.limits import is_kept_back
from gateway.kernel.reactor import Reactor
from gateway.kernel.sockets import (
    accept,
    local_endpoint,
    nat_destination,
    open_listener,
    reset_on_close,
)

#: Accepted per wake-up, so that a burst of new flows cannot starve the established ones.
BATCH: Final = 64

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
#: The client, and the original destination.
Ends = tuple[Endpoint, Endpoint]

#: IPv4, IPv6. TPROXY's are loopback addresses: nobody in the LAN can dial those.
_LISTEN_ON = {"tproxy": ("127.0.0.1", "::1"), "redirect": ("0.0.0.0", "::")}  # noqa: S104


class Acceptor(Protocol):
    """Who takes accepted flows."""

    def accepted(self, client: SocketType, source: Endpoint, destination: Endpoint) -> None:
        """A diverted flow; the socket is the acceptor's from here on."""

    def refused(self, reason: Literal["not-diverted", "no-resources"], source: Endpoint) -> None:
        """A connection that was closed at once."""


class Origin(Protocol):
    """Who knows where flows come from and were going."""

    def ends(self, client: SocketType, source: Endpoint) -> Ends | None:
        """Of an accepted flow, which the kernel says comes from ``source``.

        None for a client that dialled the listener itself. Raises ``OSError`` for one that is
        gone already.
        """


@dataclass(frozen=True, slots=True)
class Diversion:
    """How flows reach a listener, and so how it learns where they were going."""

    mode: Literal["tproxy", "redirect"]

    def ends(self, client: SocketType, source: Endpoint) -> Ends | None:
        """See ``Origin``."""
        destination = self.destination(client)
        return None if destination is None else (source, destination)

    def destination(self, client: SocketType) -> Endpoint | None:
        """The original destination; None for a client that dialled the listener itself."""
        local = local_endpoint(client)
        if self.mode == "tproxy":
            # TPROXY leaves the destination as the socket's own address. The listener's loopback
            # address can only be one that somebody dialled.
            return None if local.host in _LISTEN_ON["tproxy"] else local
        try:
            original = nat_destination(client)
        except OSError:
            return None  # conntrack does not know the flow: nothing was rewritten
        return None if original == local else original


class TcpListener:
    """One listening socket in the reactor."""

    def __init__(
        self, reactor: Reactor, sock: SocketType, origin: Origin, acceptor: Acceptor
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._origin = origin
        self._acceptor = acceptor
        # Given up for a moment when descriptors run out, to accept and close what waits: with
        # edges, a queue that is not drained would never be heard of again.
        self._spare: int | None = _reserve()
        reactor.watch(sock.fileno(), self)

    def on_ready(self, fd: int, events: int) -> None:
        """Accept until the queue is empty, a batch at a time."""
        del events
        for _ in range(BATCH):
            try:
                client, source = accept(self._sock)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _EXHAUSTED and not self._shed():
                    return
                # Anything else is the network's error on a connection that is gone (accept(2),
                # "Error handling"): the next one may be well.
                continue
            self._take(client, source)
        self._reactor.again(fd)

    def abort(self) -> None:
        """Go on: what failed was one flow's fault, and the listener must outlive it."""
        self._reactor.again(self._sock.fileno())

    def retire(self) -> None:
        """Stop listening, because others do; what waits already is accepted."""
        self.on_ready(self._sock.fileno(), 0)
        self.close()

    def close(self) -> None:
        """Stop listening."""
        self._reactor.close(self._sock)
        if self._spare is not None:
            os.close(self._spare)
            self._spare = None

    def _take(self, client: SocketType, source: Endpoint) -> None:
        if is_kept_back(client.fileno()):
            self._refuse(client, source)
            return
        try:
            ends = self._origin.ends(client, source)
        except OSError:
            client.close()  # reset before we looked
            return
        if ends is None:
            reset_on_close(client)
            client.close()
            self._acceptor.refused("not-diverted", source)
            return
        self._acceptor.accepted(client, *ends)

    def _shed(self) -> bool:
        """Refuse one waiting connection for want of descriptors.

        False: none waits, or not even that can be done.
        """
        if self._spare is None:
            self._spare = _reserve()
        if self._spare is None:
            # Descriptors of others, not ours, will be freed: look again when the loop comes round.
            self._reactor.again(self._sock.fileno())
            return False
        os.close(self._spare)
        try:
            self._refuse(*accept(self._sock))
        except BlockingIOError:
            return False  # accept(2) wants a descriptor before it looks whether anybody waits
        except OSError:
            return True
        finally:
            self._spare = _reserve()
        return True

    def _refuse(self, client: SocketType, source: Endpoint) -> None:
        """Reset a connection for want of descriptors."""
        reset_on_close(client)
        client.close()
        self._acceptor.refused("no-resources", source)


def _reserve() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def require_free_port(mode: Literal["tproxy", "redirect"], port: int, *, ipv6: bool) -> None:
    """Raise ``CapabilityError`` where somebody listens there.

    Sharing the port hides a second gateway: it would silently take half of the flows.
    """
    for host in _LISTEN_ON[mode][: 2 if ipv6 else 1]:
        open_listener(host, port, transparent=mode == "tproxy", shared=False).close()


def open_listeners(
    reactor: Reactor,
    mode: Literal["tproxy", "redirect"],
    port: int,
    acceptor: Acceptor,
    *,
    ipv6: bool,
    congestion: str | None = None,
) -> tuple[TcpListener, ...]:
    """The listeners of a diversion mode, one per family; ``congestion`` as of ``open_listener``.

    Raises ``CapabilityError`` where one cannot be opened; none is left open then.
    """
    hosts = _LISTEN_ON[mode][: 2 if ipv6 else 1]
    transparent = mode == "tproxy"
    opener = partial(open_listener, port=port, transparent=transparent, congestion=congestion)
    opened, diversion = open_all(hosts, opener), Diversion(mode)
    return tuple(TcpListener(reactor, sock, diversion, acceptor) for sock in opened)
