"""The ClientHello in QUIC's Initial packets, versions 1 and 2 (RFC 9000, RFC 9001, RFC 9369).

Initial packets are encrypted with keys that follow from what stands in them, so that anybody
on the way can read them (RFC 9001 section 5.2).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from typing import Final, NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import ECB

from gateway.sniff.sighting import MORE, Sighting
from gateway.sniff.tls import hello_sighting

#: A hello that does not end within so many bytes is not looked at further.
MAX_HELLO: Final = 16 << 10
#: Nor one in so many datagrams, or so many pieces.
MAX_DATAGRAMS: Final = 16
MAX_PIECES: Final = 512

#: RFC 9000 section 14.1: a client's first datagram has no less.
_SHORTEST_DATAGRAM: Final = 1200
_LONG_HEADER: Final = 0xC0  # form and fixed bit (section 17.2)
_TYPE: Final = 0x30
_MAX_CONNECTION_ID: Final = 20
_SAMPLE: Final = 16
_TAG: Final = 16

_PADDING, _PING, _ACK, _ACK_ECN, _CRYPTO = 0x00, 0x01, 0x02, 0x03, 0x06


class _Version(NamedTuple):
    """What differs between versions: salt, labels, and the type of an Initial."""

    salt: bytes
    prefix: bytes
    initial: int


#: RFC 9001 section 5.2 and RFC 9000 section 17.2; RFC 9369 section 3.
_VERSIONS: Final = {
    0x00000001: _Version(
        bytes.fromhex("38762cf7f55934b34d179ae6a4c80cadccbb7f0a"), b"tls13 quic ", 0x00
    ),
    0x6B3343CF: _Version(
        bytes.fromhex("0dede3def700a6db819381be6e269dcbf9bd2ed9"), b"tls13 quicv2 ", 0x10
    ),
}


class _Keys:
    """What protects a client's Initials of one connection (RFC 9001 sections 5.2 to 5.4)."""

    __slots__ = ("_aead", "_iv", "_mask")

    def __init__(self, version: _Version, connection_id: bytes) -> None:
        initial = hmac.digest(version.salt, connection_id, "sha256")
        client = _expanded(initial, b"tls13 client in", 32)
        self._aead = AESGCM(_expanded(client, version.prefix + b"key", 16))
        self._iv = int.from_bytes(_expanded(client, version.prefix + b"iv", 12), "big")
        header_key = AES128(_expanded(client, version.prefix + b"hp", 16))
        self._mask = Cipher(header_key, ECB()).encryptor()  # noqa: S305 - as the RFC has it

    def decrypted(self, packet: bytes, number_at: int) -> bytes | None:
        """The payload of an Initial; None where these are not its keys.

        ``packet`` is cut to its length; its packet number stands at ``number_at``.
        """
        sample = packet[number_at + 4 : number_at + 4 + _SAMPLE]
        mask = self._mask.update(sample)
        first = packet[0] ^ (mask[0] & 0x0F)
        width = (first & 0x03) + 1
        masked = packet[number_at : number_at + width]
        number = int.from_bytes(masked, "big") ^ int.from_bytes(mask[1 : 1 + width], "big")
        payload_at = number_at + width
        header = bytes((first,)) + packet[1:number_at] + number.to_bytes(width, "big")
        # The first packets' numbers are small: nothing of them was cut off (section A.3).
        nonce = (self._iv ^ number).to_bytes(12, "big")
        try:
            return self._aead.decrypt(nonce, packet[payload_at:], header)
        except InvalidTag:
            return None


class ClientHello:
    """One client's hello, gathered from its datagrams, in whatever order they come."""

    __slots__ = ("_datagrams", "_keys", "_pieces", "_seen")

    def __init__(self) -> None:
        self._datagrams = 0
        self._keys: _Keys | None = None
        self._pieces: dict[int, bytes] = {}  # by offset
        self._seen = MORE

    def feed(self, datagram: bytes) -> Sighting | None:
        """What is known with this datagram; None: the first was not of a QUIC client."""
        if self._seen.complete:
            return self._seen
        self._datagrams += 1
        opened = self._datagrams > 1
        for version, connection_id, packet, number_at in _initials(datagram):
            if version is None:
                self._seen = Sighting("quic", complete=True)
                return self._seen
            payload = self._opened(version, connection_id, packet, number_at)
            if payload is not None:
                opened = True
                self._gather(payload)
        if not opened:
            return None
        self._look()
        return self._seen

    def _opened(
        self, version: _Version, connection_id: bytes, packet: bytes, number_at: int
    ) -> bytes | None:
        """The payload, by the keys of the packets before or by the packet's own.

        The keys stay while the server gives itself another connection id, and change when it
        asks for a Retry (RFC 9001 section 5.2).
        """
        if self._keys is not None:
            payload = self._keys.decrypted(packet, number_at)
            if payload is not None:
                return payload
        keys = _Keys(version, connection_id)
        payload = keys.decrypted(packet, number_at)
        if payload is not None:
            self._keys = keys
        return payload

    def _gather(self, payload: bytes) -> None:
        for offset, piece in _crypto_frames(payload):
            if offset + len(piece) <= MAX_HELLO and len(self._pieces) < MAX_PIECES:
                known = self._pieces.get(offset, b"")
                self._pieces[offset] = max(known, piece, key=len)

    def _look(self) -> None:
        hello = bytearray()
        for offset in sorted(self._pieces):
            if offset > len(hello):
                break
            hello += self._pieces[offset][len(hello) - offset :]
        seen = hello_sighting(bytes(hello), "quic")
        if self._datagrams >= MAX_DATAGRAMS or (hello and hello[0] != 1):
            seen = seen._replace(complete=True)
        self._seen = seen


def _initials(datagram: bytes) -> Iterator[tuple[_Version | None, bytes, bytes, int]]:
    """Each Initial: version, destination connection id, packet, where its number stands.

    A datagram may have several packets (RFC 9000 section 12.2). The version is None where
    it is one that we do not know, of which only sections 5 and 14 of RFC 8999 hold.
    """
    at = 0
    while len(datagram) - at > 6 and datagram[at] & _LONG_HEADER == _LONG_HEADER:
        number = int.from_bytes(datagram[at + 1 : at + 5], "big")
        version = _VERSIONS.get(number)
        length = datagram[at + 5]
        if version is None:
            if at == 0 and number and len(datagram) >= _SHORTEST_DATAGRAM:
                yield None, b"", b"", 0
            return
        try:
            here = at + 6
            if length > _MAX_CONNECTION_ID:
                return
            connection_id = datagram[here : here + length]
            here += length
            here += 1 + datagram[here]  # source connection id
            is_initial = datagram[at] & _TYPE == version.initial
            if is_initial:
                token, here = _varint(datagram, here)
                here += token
            rest, here = _varint(datagram, here)
        except IndexError:
            return
        end = here + rest
        if not is_initial or end > len(datagram) or rest < 4 + _SAMPLE:
            return
        yield version, connection_id, datagram[at:end], here - at
        at = end


def _crypto_frames(payload: bytes) -> Iterator[tuple[int, bytes]]:
    """Offset and data of each CRYPTO frame, up to the first frame that an Initial may not have."""
    at = 0
    try:
        while at < len(payload):
            kind = payload[at]
            at += 1
            if kind == _CRYPTO:
                offset, at = _varint(payload, at)
                length, at = _varint(payload, at)
                yield offset, payload[at : at + length]
                at += length
            elif kind in (_ACK, _ACK_ECN):
                at = _after_ack(payload, at, ecn=kind == _ACK_ECN)
            elif kind == _PADDING:
                at = len(payload) - len(payload[at:].lstrip(b"\x00"))
            elif kind != _PING:
                return
    except IndexError:
        return


def _after_ack(payload: bytes, at: int, *, ecn: bool) -> int:
    """Where an ACK frame ends (RFC 9000 section 19.3)."""
    _, at = _varint(payload, at)
    _, at = _varint(payload, at)
    ranges, at = _varint(payload, at)
    for _ in range(1 + 2 * ranges + (3 if ecn else 0)):
        _, at = _varint(payload, at)
    return at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number and where it ends (RFC 9000 section 16). Raises ``IndexError``."""
    width = 1 << (data[at] >> 6)
    end = at + width
    if end > len(data):
        raise IndexError
    return int.from_bytes(data[at:end], "big") & ((1 << (8 * width - 2)) - 1), end


def _expanded(secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1) without context, of at most 32 bytes.

    For those, HKDF-Expand (RFC 5869 section 2.3) is one HMAC.
    """
    info = length.to_bytes(2, "big") + bytes((len(label),)) + label + b"\x00\x01"
    return hmac.digest(secret, info, "sha256")[:length]
