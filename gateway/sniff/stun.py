"""STUN (RFC 8489 section 5), over UDP and over TCP."""

from __future__ import annotations

from typing import Final

from gateway.sniff.sighting import MORE, Sighting

_HEADER: Final = 20
_MAGIC_COOKIE: Final = b"\x21\x12\xa4\x42"
_FOUND: Final = Sighting("stun", complete=True)


def stream_sighting(data: bytes) -> Sighting | None:
    """What the first bytes of a TCP stream show; None: not STUN."""
    cookie = data[4:8]
    # The two highest bits are zero, and the length is a multiple of four.
    if data[0] & 0xC0 or (len(data) > 3 and data[3] & 3) or not _MAGIC_COOKIE.startswith(cookie):
        return None
    return _FOUND if cookie == _MAGIC_COOKIE else MORE


def datagram_sighting(data: bytes) -> Sighting | None:
    """What a datagram shows; None: not STUN."""
    if len(data) < _HEADER or int.from_bytes(data[2:4], "big") != len(data) - _HEADER:
        return None
    return stream_sighting(data)
