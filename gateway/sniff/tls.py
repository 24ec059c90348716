"""The name in a TLS ClientHello (RFC 8446 sections 4.1.2 and 5.1, RFC 6066 section 3)."""

from __future__ import annotations

import struct
from typing import Final

from gateway.sniff.sighting import MORE, Sighting, host_name

_HANDSHAKE: Final = 22
_CLIENT_HELLO: Final = 1
#: Content type, version and length (RFC 8446 section 5.1).
_RECORD_HEADER: Final = 5
_MAX_RECORD: Final = 1 << 14
#: Type and length (RFC 8446 section 4).
_HANDSHAKE_HEADER: Final = 4
#: legacy_version and random.
_HELLO_HEAD: Final = 34

#: Type and length of an extension.
_EXTENSION: Final = struct.Struct("!HH")
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
#: "encrypted_client_hello" (draft-ietf-tls-esni section 5).
_ENCRYPTED_CLIENT_HELLO: Final = 0xFE0D


class _EndError(Exception):
    """The bytes end within what they announce."""


def stream_sighting(data: bytes) -> Sighting | None:
    """What the first bytes of a TCP stream show; None: not a TLS client.

    The hello may be cut into records anywhere, and the bytes may end anywhere.
    """
    if data[0] != _HANDSHAKE:
        return None
    message = b""
    at = 0
    while at < len(data):
        header = data[at : at + _RECORD_HEADER]
        length = int.from_bytes(header[3:], "big")
        if header[0] != _HANDSHAKE or header[1:2] not in (b"", b"\x03") or length > _MAX_RECORD:
            return _broken(message)
        if len(header) < _RECORD_HEADER:
            break
        if not length:  # forbidden for handshakes, and would let a hello never end
            return _broken(message)
        at += _RECORD_HEADER
        message += data[at : at + length]
        if message and message[0] != _CLIENT_HELLO:
            return None
        at += length
        if _is_whole(message):
            break
    return hello_sighting(message, "tls") if message else MORE


def hello_sighting(message: bytes, protocol: str) -> Sighting:
    """What a ClientHello with its handshake header shows, as far as it is there.

    A hello that is whole, but not as the RFC has it, is one without a name.
    """
    complete = _is_whole(message)
    if complete:
        message = message[: _length(message)]
    name, ech = "", False
    try:
        at = _HANDSHAKE_HEADER + _HELLO_HEAD
        for width in (1, 2, 1):  # legacy_session_id, cipher_suites, legacy_compression_methods
            _, at = _field(message, at, width)
        if complete and at == len(message):  # TLS 1.2 and before: without extensions
            return Sighting(protocol, "", complete)
        at, end = _field(message, at, 2)
        while at < end:
            kind, length = _EXTENSION.unpack_from(message, at)
            start, at = at + 4, at + 4 + length
            if at > len(message):
                raise _EndError
            if kind == _SERVER_NAME:
                name = _server_name(message[start:at])
            elif kind == _ENCRYPTED_CLIENT_HELLO:
                ech = True
    except (_EndError, struct.error):
        if complete:
            name = ""
    return Sighting(protocol, name, complete, ech)


def _server_name(extension: bytes) -> str:
    """The host name of a server_name extension. Raises ``_EndError``."""
    at, end = _field(extension, 0, 2)
    while at < end:
        start, stop = _field(extension, at + 1, 2)
        if extension[at] == _HOST_NAME:
            return host_name(extension[start:stop]) if stop <= end else ""
        at = stop
    return ""


def _field(data: bytes, at: int, width: int) -> tuple[int, int]:
    """Where a field begins and ends, whose length stands before it. Raises ``_EndError``."""
    start = at + width
    if start > len(data):
        raise _EndError
    return start, start + int.from_bytes(data[at:start], "big")


def _length(message: bytes) -> int:
    """How long the message is with its header, which must be there."""
    return _HANDSHAKE_HEADER + int.from_bytes(message[1:_HANDSHAKE_HEADER], "big")


def _is_whole(message: bytes) -> bool:
    return len(message) >= _HANDSHAKE_HEADER and len(message) >= _length(message)


def _broken(message: bytes) -> Sighting | None:
    """What a stream is that went on as no handshake does: None where it never was one."""
    return hello_sighting(message, "tls")._replace(complete=True) if message else None
