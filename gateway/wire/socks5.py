"""SOCKS5, the client's side, without I/O: bytes in, bytes out (RFC 1928, RFC 1929).

The caller sends ``opening()``, feeds whatever the server answers in pieces of
any size, sends whatever ``feed`` returns, and is done when ``established``. What
the server sent behind its reply is the first data of the flow: ``surplus``.

RFC 1928 has the client wait for each answer. Nothing in a handshake depends on an
answer, though, once a single method is offered: ``pipelined`` sends it all at once
and saves a round trip for each wait. A server that reads into a buffer and throws
away what it did not expect loses the request, so this is for those known to bear it.

A handshake without a target stops before the request and waits for
``request(target)``: so a connection can be prepared before it is known what for.
"""

from __future__ import annotations

from enum import Enum, auto
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import NamedTuple

from gateway.errors import ProtocolError, UpstreamFailure
from gateway.flow import Endpoint

VERSION = 0x05
AUTH_VERSION = 0x01  # RFC 1929 section 2: its own version, not the protocol's
NO_AUTH = 0x00
USER_PASSWORD = 0x02
NO_ACCEPTABLE = 0xFF
CONNECT = 0x01
UDP_ASSOCIATE = 0x03
IPV4 = 0x01
NAME = 0x03
IPV6 = 0x04

#: RFC 1928 section 6, as the LAN client would have met it without a proxy.
_REPLIES = {
    0x01: (UpstreamFailure.UNREACHABLE, "general failure"),
    0x02: (UpstreamFailure.DENIED, "not allowed by the server's ruleset"),
    0x03: (UpstreamFailure.UNREACHABLE, "network unreachable"),
    0x04: (UpstreamFailure.UNREACHABLE, "host unreachable"),
    0x05: (UpstreamFailure.REFUSED, "connection refused"),
    0x06: (UpstreamFailure.TIMEOUT, "TTL expired"),
    0x07: (UpstreamFailure.PROTOCOL, "command not supported"),
    0x08: (UpstreamFailure.PROTOCOL, "address type not supported"),
}


class Socks5Error(ProtocolError):
    """The server refused, or does not speak SOCKS5; ``failure`` says what the client gets."""

    def __init__(self, failure: UpstreamFailure, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.failure = failure


class Credentials(NamedTuple):
    """User and password, 1 to 255 bytes each in UTF-8 (RFC 1929 section 2)."""

    username: str
    password: str

    def __repr__(self) -> str:
        return f"Credentials({self.username!r}, ***)"


class _State(Enum):
    METHOD = auto()
    AUTH = auto()
    READY = auto()
    REPLY = auto()
    DONE = auto()


def encode_address(target: Endpoint) -> bytes:
    """ATYP, address and port of ``target`` (RFC 1928 section 5).

    Raises ``ValueError`` where the host is neither an address nor a name of 1 to
    255 ASCII bytes, or the port does not fit.
    """
    port = target.port.to_bytes(2, "big")
    host = target.host
    if ":" in host:
        return bytes((IPV6,)) + IPv6Address(host).packed + port
    try:
        return bytes((IPV4,)) + IPv4Address(host).packed + port
    except AddressValueError:
        name = host.encode("ascii")
        if not 0 < len(name) < 256:
            raise ValueError(f"a name of {len(name)} bytes does not fit a SOCKS request") from None
        return bytes((NAME, len(name))) + name + port


@lru_cache(maxsize=1024)
def encode_request(target: Endpoint, command: int = CONNECT) -> bytes:
    """The request for ``target`` (RFC 1928 section 4).

    Remembered, because flows repeat their destinations. Raises ``ValueError`` as
    ``encode_address`` does.
    """
    return bytes((VERSION, command, 0)) + encode_address(target)


def decode_address(raw: bytes) -> Endpoint | None:
    """The endpoint of whole ATYP, address and port; IPv4-mapped addresses are IPv4.

    None for a name that is none, as servers write that have no address to tell.
    """
    kind, port = raw[0], int.from_bytes(raw[-2:], "big")
    if kind == IPV4:
        return Endpoint("{}.{}.{}.{}".format(*raw[1:5]), port)
    if kind == IPV6:
        address = IPv6Address(raw[1:17])
        return Endpoint(str(address.ipv4_mapped or address), port)
    name = raw[2:-2]
    if not name or not name.isascii() or not name.decode("ascii").isprintable():
        return None
    return Endpoint(name.decode("ascii"), port)


def encode_auth(credentials: Credentials) -> bytes:
    """The user/password request (RFC 1929 section 2). Raises ``ValueError`` on a bad length."""
    parts = [bytes((AUTH_VERSION,))]
    for what, text in zip(("username", "password"), credentials, strict=True):
        raw = text.encode()
        if not 0 < len(raw) < 256:
            raise ValueError(f"SOCKS {what} must have 1 to 255 bytes")
        parts.append(bytes((len(raw),)) + raw)
    return b"".join(parts)


class ClientHandshake:
    """One request, from greeting to reply."""

    __slots__ = ("_auth", "_buffer", "_pipelined", "_reply", "_request", "_state", "surplus")

    def __init__(
        self,
        target: Endpoint | None,
        credentials: Credentials | None = None,
        *,
        pipelined: bool = False,
        command: int = CONNECT,
    ) -> None:
        """Raise ``ValueError`` where target or credentials cannot be encoded."""
        self._pipelined = pipelined
        self._request = b"" if target is None else encode_request(target, command)
        self._auth = None if credentials is None else encode_auth(credentials)
        self._buffer = b""
        self._state = _State.METHOD
        self._reply = b""
        self.surplus = b""

    @property
    def established(self) -> bool:
        """Whether the server has connected us to the target."""
        return self._state is _State.DONE

    @property
    def accepted(self) -> bool:
        """Whether the server has accepted us: what is left is the request and its reply."""
        return self._state not in (_State.METHOD, _State.AUTH)

    @property
    def asked(self) -> bool:
        """Whether ``opening`` has the request in it."""
        return self._pipelined and bool(self._request)

    @property
    def replied(self) -> bool:
        """Whether the server has said anything of the request."""
        return self.established or (self._state is _State.REPLY and bool(self._buffer))

    @property
    def bound(self) -> Endpoint | None:
        """What the reply says: of a UDP ASSOCIATE, where the relay takes datagrams.

        None where it is not there yet, or says nothing of use.
        """
        return decode_address(self._reply[3:]) if self._reply else None

    def request(self, target: Endpoint) -> bytes:
        """What to send for ``target`` where none was given and the server has accepted us.

        Raises ``ValueError`` where it cannot be encoded.
        """
        assert self._state is _State.READY
        self._request = encode_request(target)
        return self._accept()

    def opening(self) -> bytes:
        """The first bytes to send (RFC 1928 section 3).

        With credentials both methods are offered: a server that wants none of them
        must not fail for it. Pipelined, the one that is certain to do is.
        """
        if not self._pipelined:
            return b"\x05\x01\x00" if self._auth is None else b"\x05\x02\x00\x02"
        if self._auth is None:
            return b"\x05\x01\x00" + self._request
        return b"\x05\x01\x02" + self._auth + self._request

    def feed(self, data: bytes) -> bytes:
        """Take bytes of the server; return what to send now (nothing: wait for more).

        Raises ``Socks5Error`` on a refusal or a breach of the protocol.
        """
        if self._state is _State.DONE:
            self.surplus += data
            return b""
        self._buffer += data
        send = b""
        while not self.accepted and not send:
            if len(self._buffer) < 2:
                return b""
            send = self._on_method() if self._state is _State.METHOD else self._on_auth()
            if self._pipelined:
                send = b""  # it is sent already
        if self._buffer and (send or self._state is _State.READY):
            # Were it taken for a reply, the request would never be sent.
            raise Socks5Error(UpstreamFailure.PROTOCOL, "the server answered before it was asked")
        if self._state is _State.REPLY:
            self._on_reply()
        return send

    def _take(self, count: int) -> bytes:
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def _on_method(self) -> bytes:
        version, method = self._take(2)
        if version != VERSION:
            raise Socks5Error(
                UpstreamFailure.PROTOCOL,
                f"the server answered version {version:#04x}, not SOCKS5",
                "check that server and port are those of a SOCKS5 proxy",
            )
        if method == NO_AUTH and (self._auth is None or not self._pipelined):
            return self._accept()
        if method == USER_PASSWORD and self._auth is not None:
            self._state = _State.AUTH
            return self._auth
        if method in (NO_ACCEPTABLE, USER_PASSWORD):
            raise Socks5Error(
                UpstreamFailure.DENIED,
                "the server wants a login"
                if self._auth is None
                else "the server accepts neither login nor anonymous use",
                "set username and password of this outbound" if self._auth is None else "",
            )
        raise Socks5Error(
            UpstreamFailure.PROTOCOL,
            f"the server chose method {method:#04x}, which was not offered",
        )

    def _on_auth(self) -> bytes:
        _version, status = self._take(2)  # some servers answer with the protocol's version: accept
        if status != 0:
            raise Socks5Error(
                UpstreamFailure.DENIED,
                "the server refused username and password",
                "check username and password of this outbound",
            )
        return self._accept()

    def _accept(self) -> bytes:
        self._state = _State.REPLY if self._request else _State.READY
        return self._request

    def _on_reply(self) -> None:
        buffer = self._buffer
        if len(buffer) < 2:
            return
        if buffer[0] != VERSION:
            raise Socks5Error(
                UpstreamFailure.PROTOCOL, f"the reply has version {buffer[0]:#04x}, not 5"
            )
        if buffer[1] != 0:
            # Some servers close right behind the code: do not wait for an address of no use.
            failure, text = _REPLIES.get(
                buffer[1], (UpstreamFailure.PROTOCOL, f"unknown reply code {buffer[1]:#04x}")
            )
            raise Socks5Error(failure, text)
        if len(buffer) < 5:
            return
        if buffer[3] == IPV4:
            length = 10
        elif buffer[3] == IPV6:
            length = 22
        elif buffer[3] == NAME:
            length = 7 + buffer[4]
        else:
            raise Socks5Error(
                UpstreamFailure.PROTOCOL, f"the reply has address type {buffer[3]:#04x}"
            )
        if len(buffer) >= length:
            self._reply = self._take(length)
            self._state = _State.DONE
            self.surplus, self._buffer = self._buffer, b""
