"""The first bytes of a TCP stream: which protocol, and which name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gateway.sniff import dns, http, stun, tls
from gateway.sniff.sighting import MORE, UNKNOWN, Sighting

#: Protocols whose clients begin with the same bytes always: RFC 4253 section 4.2, BEP 3.
_BEGINNINGS: Final = {
    b"SSH-": Sighting("ssh", complete=True),
    b"\x13BitTorrent protocol": Sighting("bittorrent", complete=True),
}
#: TPKT and an X.224 connection request (RFC 1006 section 6, [MS-RDPBCGR] section 2.2.1.1).
_TPKT: Final = b"\x03\x00"
_CONNECTION_REQUEST: Final = 0xE0


def sighting(data: bytes) -> Sighting:
    """What the first bytes show; ``complete`` where nobody can say more."""
    if not data:
        return MORE
    seen = None
    for parse in _PARSERS:
        found = parse(data)
        if found is not None:
            if found.complete:
                return found
            # Of those that may yet be it, the one that is sure of its protocol.
            seen = found if seen is None or not seen.protocol else seen
    return UNKNOWN if seen is None else seen


def _magic(data: bytes) -> Sighting | None:
    for beginning, found in _BEGINNINGS.items():
        if data.startswith(beginning):
            return found
        if beginning.startswith(data):
            return MORE
    return None


def _rdp(data: bytes) -> Sighting | None:
    head = data[:6]
    if not (head.startswith(_TPKT) or _TPKT.startswith(head)):
        return None
    if len(head) < 6:
        return MORE
    length = int.from_bytes(head[2:4], "big")
    if head[5] != _CONNECTION_REQUEST or length < head[4] + 5:
        return None
    return Sighting("rdp", complete=True)


_PARSERS: Final[tuple[Callable[[bytes], Sighting | None], ...]] = (
    tls.stream_sighting,
    http.sighting,
    _magic,
    _rdp,
    stun.stream_sighting,
    dns.stream_sighting,
)
