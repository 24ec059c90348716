"""The host that an HTTP/1 request is for (RFC 9112 section 3), and HTTP/2's preface."""

from __future__ import annotations

import re
from typing import Final

from gateway.sniff.sighting import Sighting, host_name

#: RFC 9113 section 3.4.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

#: Methods are tokens; those that exist are in capitals (the IANA registry of methods).
_REQUEST_LINE: Final = re.compile(rb"[A-Z][A-Z-]{1,19} (\S+) HTTP/1\.[01]\r?\n")
#: What may become one.
_BEGINNING: Final = re.compile(rb"[A-Z][A-Z-]{0,19}(?: (?:\S+(?: [HTP/1.0]*)?)?)?\r?")
#: The field, with its line end, so that a name that was cut is not taken for another; or the end
#: of all fields.
_HOST: Final = re.compile(rb"\n(?:host:([^\r\n]*)\r?\n|\r?\n)", re.IGNORECASE)
#: absolute-form and authority-form (RFC 9112 sections 3.2.2 and 3.2.3).
_ABSOLUTE: Final = re.compile(rb"[a-z][a-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#]*)", re.IGNORECASE)
#: A host, and the port behind it (RFC 3986 section 3.2).
_AUTHORITY: Final = re.compile(rb"[ \t]*([^\s:\[\]]*)(?::[0-9]*)?[ \t]*")


def sighting(data: bytes) -> Sighting | None:
    """What the first bytes of a TCP stream show; None: not an HTTP client.

    HTTP/2 in plain text is ``http2``, without a name: that is in compressed headers.
    """
    line = _REQUEST_LINE.match(data)
    if line is None:
        return _beginning(data)
    target = line[1]
    if not target.startswith(b"/"):
        absolute = _ABSOLUTE.match(target)
        if absolute is not None:
            return _found(absolute[1])  # a Host beside it counts for nothing (section 3.2.2)
        if data.startswith(b"CONNECT "):
            return _found(target)
    host = _HOST.search(data, line.end() - 1)
    if host is None:
        return Sighting("http")
    return _found(host[1] or b"")


def _beginning(data: bytes) -> Sighting | None:
    if data.startswith(_PREFACE):
        return Sighting("http2", complete=True)
    if _PREFACE.startswith(data):
        return Sighting("http2" if b"*" in data else "")
    return Sighting() if _BEGINNING.fullmatch(data) else None


def _found(authority: bytes) -> Sighting:
    host = _AUTHORITY.fullmatch(authority)
    return Sighting("http", "" if host is None else host_name(host[1]), complete=True)
