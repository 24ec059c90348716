"""The datagrams of one conversation, both ways; and the sockets that speak as its far end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from socket import SocketType
from typing import Any, Protocol

from gateway.flow import Endpoint
from gateway.kernel.datagrams import Batch, Way
from gateway.kernel.sockaddr import Address, endpoint_of
from gateway.kernel.udp_sockets import is_raw
from gateway.wire.udp import encode_datagram


class Upward(Protocol):
    """What carries datagrams onward: ``sock``, or ``keep_one`` while there is none yet."""

    sock: SocketType | None

    def keep_one(self, way: Way, datagram: bytes) -> int:
        """Hold one datagram back; its size, 0 where it is dropped."""


class Speaker(Protocol):
    """What speaks to clients as one far end."""

    def forward(self, batch: Batch, first: int, last: int, skip: int, client: Address) -> int:
        """Give the client slots, without their first ``skip`` bytes; the bytes that were sent."""

    def send(self, batch: Batch, data: memoryview, client: Address) -> bool:
        """Give the client one datagram; False: it is dropped, and counted."""


class Replies(Protocol):
    """Who lends speakers."""

    def lease(self, remote: Endpoint) -> Any:
        """One that speaks as ``remote``. Raises ``OSError`` where it cannot be had."""

    def release(self, reply: Any) -> None:
        """Give it back."""


class Reply:
    """A lease of a socket that speaks as ``remote``, shared by all who hear from it."""

    __slots__ = ("holders", "raw", "remote", "sock")

    def __init__(self, remote: Endpoint, sock: SocketType) -> None:
        self.remote = remote
        self.sock = sock
        self.raw = is_raw(sock)
        self.holders = 0

    def send(self, batch: Batch, data: memoryview, client: Address) -> bool:
        """Give the client one datagram; False: it is dropped, and counted."""
        if not self.raw:
            return batch.send(self.sock, data, client)
        datagram = encode_datagram(self.remote, endpoint_of(client.raw), bytes(data))
        return batch.send(self.sock, datagram, client.without_port())

    def forward(self, batch: Batch, first: int, last: int, skip: int, client: Address) -> int:
        """Give the client slots, without their first ``skip`` bytes; the bytes that were sent."""
        if not self.raw:
            return batch.forward(self.sock, first, last, skip=skip, to=client)
        sent = 0
        for slot in range(first, last):
            for datagram in batch.datagrams(slot):
                data = datagram[skip:]
                sent += len(data) if self.send(batch, data, client) else 0
        return sent


class ReplySockets:
    """The leased sockets of this process: one for each far end that has answered somebody."""

    def __init__(self, opener: Callable[[Endpoint], SocketType]) -> None:
        self._open = opener
        self._leased: dict[Endpoint, Reply] = {}
        #: How many there have been for a port that a program of this machine has.
        self.raw = 0

    def __len__(self) -> int:
        """How many there are."""
        return len(self._leased)

    def lease(self, remote: Endpoint) -> Reply:
        """The socket of ``remote``. Raises ``OSError`` where it cannot be had."""
        reply = self._leased.get(remote)
        if reply is None:
            reply = self._leased[remote] = Reply(remote, self._open(remote))
            self.raw += reply.raw
        reply.holders += 1
        return reply

    def release(self, reply: Reply) -> None:
        """Give a lease back; the last one closes the socket."""
        reply.holders -= 1
        if not reply.holders:
            del self._leased[reply.remote]
            reply.sock.close()


class Conversation(ABC):
    """One client socket and one far end.

    ``mute`` is called, once, where no socket can speak as the far end.
    """

    __slots__ = (
        "_remote", "_replies", "_reply", "bytes_down", "bytes_up", "client", "leg", "way",
    )  # fmt: skip

    def __init__(self, client: Address, remote: Endpoint, replies: Replies) -> None:
        self.client = client
        self._remote = remote
        self._replies = replies
        self._reply: Speaker | None = None
        self.leg: Upward | None = None
        self.way = Way(b"", None)
        self.bytes_up = 0
        self.bytes_down = 0

    def up(self, batch: Batch, first: int, last: int) -> None:
        """Send slots ``first`` up to ``last`` of the batch onward."""
        leg, (prefix, to) = self.leg, self.way
        if leg is None:
            return
        sock = leg.sock
        if sock is None:
            for slot in range(first, last):
                for datagram in batch.datagrams(slot):
                    self.bytes_up += leg.keep_one(self.way, bytes(datagram))
        else:
            sent = batch.forward(sock, first, last, prefix=prefix, to=to)
            if sent:
                self.bytes_up += sent
            else:
                self.unsent(batch)

    def up_one(self, batch: Batch, datagram: bytes) -> None:
        """Send one datagram onward."""
        if self.leg is None:
            return
        if self.leg.sock is None:
            self.bytes_up += self.leg.keep_one(self.way, datagram)
        elif batch.send(self.leg.sock, self.way.prefix + datagram, self.way.to):
            self.bytes_up += len(datagram)
        else:
            self.unsent(batch)

    def down(self, batch: Batch, first: int, last: int, skip: int) -> None:
        """Give the client slots ``first`` up to ``last``, without their first ``skip`` bytes."""
        reply = self._reply or self._lease()
        if reply is not None:
            self.bytes_down += reply.forward(batch, first, last, skip, self.client)

    def down_one(self, batch: Batch, data: memoryview) -> None:
        """Give the client one datagram."""
        reply = self._reply or self._lease()
        if reply is not None and reply.send(batch, data, self.client):
            self.bytes_down += len(data)

    def expect_answer(self) -> None:
        """Have what an answer takes before it comes, if it can be had."""
        if self.leg is not None and self._reply is None:
            with suppress(OSError):
                self._reply = self._replies.lease(self._remote)

    @abstractmethod
    def mute(self, error: OSError) -> None:
        """There is no way to speak as the far end."""

    @abstractmethod
    def unsent(self, batch: Batch) -> None:
        """Nothing has gone onward: it was empty, or ``batch.failure`` says why."""

    def _lease(self) -> Speaker | None:
        try:
            self._reply = self._replies.lease(self._remote)
        except OSError as error:
            self.mute(error)
        return self._reply

    def _release(self) -> None:
        if self._reply is not None:
            self._replies.release(self._reply)
            self._reply = None
