"""DNS queries (RFC 1035 section 4.1), over UDP and, behind a length, over TCP."""

from __future__ import annotations

from typing import Final

from gateway.sniff.sighting import MORE, Sighting

_HEADER: Final = 12
#: Of a message over TCP (RFC 1035 section 4.2.2).
_LENGTH: Final = 2
_FOUND: Final = Sighting("dns", complete=True)
_QUERY_AND_OPCODE: Final = 0xF8
#: Of a label, and of a name without its last dot (RFC 1035 section 2.3.4).
_LONGEST_LABEL: Final = 63
_LONGEST_NAME: Final = 253


def datagram_sighting(data: bytes) -> Sighting | None:
    """What a datagram shows; None: not a DNS query.

    A standard query has one question and nothing in answer to it.
    """
    if len(data) <= _HEADER or data[2] & _QUERY_AND_OPCODE:
        return None
    return _FOUND if data[4:10] == b"\x00\x01\x00\x00\x00\x00" else None


def stream_sighting(data: bytes) -> Sighting | None:
    """What the first bytes of a TCP stream show; None: not a DNS client."""
    if len(data) >= _LENGTH and int.from_bytes(data[:_LENGTH], "big") <= _HEADER:
        return None
    message = data[_LENGTH:]
    if len(message) > _HEADER:
        return datagram_sighting(message)
    if message[2:3] and message[2] & _QUERY_AND_OPCODE:
        return None
    return MORE if b"\x00\x01\x00\x00\x00\x00".startswith(message[4:10]) else None


def question_name(data: bytes) -> str | None:
    """The name that a DNS query asks for, lower case and without the last dot.

    None: it is no query, or the name is not one of a host (not ASCII, too long, compressed).
    """
    if datagram_sighting(data) is None:
        return None
    labels: list[bytes] = []
    at = _HEADER
    while length := data[at] if at < len(data) else _LONGEST_LABEL + 1:
        at += 1
        if length > _LONGEST_LABEL or at + length > len(data):
            return None
        labels.append(data[at : at + length])
        at += length
    name = b".".join(labels).lower()
    return name.decode("ascii") if len(name) <= _LONGEST_NAME and name.isascii() else None
