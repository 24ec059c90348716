"""The first datagrams of a UDP flow: which protocol, and which name."""

from __future__ import annotations

from typing import Final

from gateway.sniff import dns, quic, stun
from gateway.sniff.sighting import UNKNOWN, Sighting

_DTLS: Final = Sighting("dtls", complete=True)
#: Handshake, and the two versions that a DTLS hello may begin with (RFC 9147 section 5.3).
_DTLS_HELLOS: Final = (b"\x16\xfe\xff", b"\x16\xfe\xfd")
_NTP: Final = Sighting("ntp", complete=True)
#: Versions 3 and 4, mode client (RFC 5905 section 7.3); nothing else has this length.
_NTP_LENGTH: Final = 48
_NTP_CLIENTS: Final = frozenset({0x1B, 0x23, 0xDB, 0xE3})
_BITTORRENT: Final = Sighting("bittorrent", complete=True)
#: Queries and answers of its hash table (BEP 5), as bencoding sorts their keys.
_HASH_TABLE: Final = (b"d1:ad2:id20:", b"d1:rd2:id20:")


class Datagrams:
    """What a flow's datagrams show so far. One for each flow; feed it until ``complete``."""

    __slots__ = ("_hello",)

    def __init__(self) -> None:
        self._hello: quic.ClientHello | None = None

    def feed(self, datagram: bytes) -> Sighting:
        """What is known with this datagram of the client."""
        if self._hello is None:
            plain = _plain(datagram)
            if plain is not None:
                return plain
            self._hello = quic.ClientHello()
        return self._hello.feed(datagram) or UNKNOWN


def _plain(datagram: bytes) -> Sighting | None:
    """A protocol that one datagram shows."""
    if datagram.startswith(_DTLS_HELLOS):
        return _DTLS
    if datagram.startswith(_HASH_TABLE):
        return _BITTORRENT
    if len(datagram) == _NTP_LENGTH and datagram[0] in _NTP_CLIENTS:
        return _NTP
    return (stun.datagram_sighting(datagram) if datagram else None) or dns.datagram_sighting(
        datagram
    )
