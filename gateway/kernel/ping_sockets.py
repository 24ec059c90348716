"""Ping sockets: ICMP echo without raw sockets (icmp(7); ``ping_init_sock`` of net/ipv4/ping.c).

The kernel gives each an identifier of its own and hands it the replies to that one alone.
Who may open one is ``net.ipv4.ping_group_range``, which holds for IPv6 too.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from socket import SocketType
from typing import Final, NamedTuple

from gateway.kernel.error_queue import Told, ask_for_errors, told
from gateway.kernel.sockets import SocketFactory, SocketOptions, family_of

IP_MTU_DISCOVER: Final = 10
IPV6_MTU_DISCOVER: Final = 23
IP_MTU: Final = 14
IPV6_MTU: Final = 24
PMTUDISC_WANT: Final = 1
PMTUDISC_DO: Final = 2
IP_RECVTTL: Final = 12

#: Taken from, before anybody else is: all sockets of a process share it.
_BUFFER: Final = bytearray(65_535)
_BUFFERS: Final = (_BUFFER,)
_HEADER: Final = 8
#: What is no reply, at most, before it is said that there is none.
_ERRORS: Final = 8
_CONTROL: Final = socket.CMSG_SPACE(4)


#: Who answered, the number of which request, how many hops its answer could still have gone,
#: and its data. Not named: that takes a tenth of the time between a reply and its client.
EchoReply = tuple[str, int, int, bytes]


class EchoError(NamedTuple):
    """An ICMP error about a request."""

    sequence: int
    told: Told


class PingSocket:
    """A non-blocking ping socket towards one host. Raises ``OSError`` as connect(2) does.

    ``EACCES``: the group of this process is outside ``net.ipv4.ping_group_range``.
    """

    __slots__ = ("_family", "_hop_limit", "_whole", "identifier", "sock")

    def __init__(self, factory: SocketFactory, host: str, options: SocketOptions) -> None:
        family = self._family = family_of(host)
        protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
        # Replies to another machine's address would not come back to this socket.
        options = replace(options, transparent=False)
        sock = factory.open(family, socket.SOCK_DGRAM, options, protocol)
        try:
            ask_for_errors(sock)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVHOPLIMIT, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
            sock.connect((host, 0))
        except BaseException:
            sock.close()
            raise
        self.sock: SocketType = sock
        #: By which replies to this socket are known.
        self.identifier: int = sock.getsockname()[1]
        self._hop_limit = 0
        self._whole: bool | None = None

    def send(self, message: bytes, hop_limit: int, *, whole: bool) -> None:
        """Send an echo request, whose identifier and checksum the kernel fills in.

        Raises ``OSError``: ``EMSGSIZE`` where it must stay ``whole``.
        """
        sock = self.sock
        v6 = self._family == socket.AF_INET6
        if hop_limit != self._hop_limit:
            self._hop_limit = hop_limit
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, hop_limit)
            else:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, hop_limit)
        if whole is not self._whole:
            self._whole = whole
            wanted = PMTUDISC_DO if whole else PMTUDISC_WANT
            if v6:
                sock.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, wanted)
            else:
                sock.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, wanted)
        try:
            sock.send(message)
        except OSError as error:
            # What an earlier request met is told now too; this one was not sent (udp(7)).
            if error.errno in (errno.EMSGSIZE, errno.EAGAIN, errno.ENOBUFS):
                raise
            sock.send(message)

    def path_mtu(self) -> int:
        """What the path takes at once, as far as is known (bytes)."""
        if self._family == socket.AF_INET6:
            return self.sock.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU)
        return self.sock.getsockopt(socket.IPPROTO_IP, IP_MTU)

    def receive(self) -> EchoReply | None:
        """Take one of those that wait; None: there is none."""
        for _ in range(_ERRORS):
            try:
                size, control, _, address = self.sock.recvmsg_into(_BUFFERS, _CONTROL)
            except BlockingIOError:
                return None
            except OSError:  # an ICMP error, told by the error queue besides
                continue
            if size < _HEADER:
                continue
            hop_limit = 64
            for _, _, value in control:
                hop_limit = int.from_bytes(value[:4], sys.byteorder)
            host = str(address[0])
            if "%" in host:
                host = host.partition("%")[0]
            sequence = int.from_bytes(_BUFFER[6:_HEADER], "big")
            return host, sequence, hop_limit, bytes(_BUFFER[_HEADER:size])
        return None

    def errors(self) -> Iterator[EchoError]:
        """Take what the error queue holds (ip(7), ``IP_RECVERR``)."""
        while True:
            try:
                quoted, control, _, _ = self.sock.recvmsg(64, 512, socket.MSG_ERRQUEUE)
            except OSError:  # none waits
                return
            for error in told(control):
                if len(quoted) >= _HEADER:
                    yield EchoError(int.from_bytes(quoted[6:_HEADER], "big"), error)
