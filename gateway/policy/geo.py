"""Where addresses are, by the owner's MMDB files.

The readers map the files, so that processes share their pages; pickled, they are their paths.
The library does not survive every damaged file: ``rulesets.geo`` opens those that are whole.
"""

from __future__ import annotations

from functools import lru_cache

import maxminddb

#: Answers that are remembered: flows repeat their destinations.
REMEMBERED = 8192


class MmdbGeography:
    """Two databases, either of which may be missing (an empty path)."""

    def __init__(self, country: str = "", asn: str = "") -> None:
        """Raises ``OSError`` or ``maxminddb.InvalidDatabaseError`` for a bad file."""
        self._paths = (country, asn)
        self._countries = _reader(country)
        self._asns = _reader(asn)
        self.country = lru_cache(REMEMBERED)(self._country)
        self.asn = lru_cache(REMEMBERED)(self._asn)

    def __reduce__(self) -> tuple[type[MmdbGeography], tuple[str, str]]:
        return type(self), self._paths

    def _country(self, host: str) -> str:
        """ISO 3166 code in upper case; empty where unknown."""
        return country_in(_record(self._countries, host))

    def _asn(self, host: str) -> int:
        """Number of the autonomous system; 0 where unknown."""
        return asn_in(_record(self._asns, host))


def _reader(path: str) -> maxminddb.Reader | None:
    return maxminddb.open_database(path, maxminddb.MODE_AUTO) if path else None


def _record(reader: maxminddb.Reader | None, host: str) -> object:
    """What a database has for an address; nothing for one that it cannot have."""
    if reader is None:
        return None
    try:
        return reader.get(host)
    except (ValueError, maxminddb.InvalidDatabaseError):
        return None  # IPv6 in a database of IPv4; a damaged record


def country_in(record: object) -> str:
    """The country of a record, as the publishers write it.

    ``country.iso_code``, else ``registered_country.iso_code`` (MaxMind's), or a text in
    ``country_code`` or ``country`` (others').
    """
    if not isinstance(record, dict):
        return ""
    for key in ("country", "country_code", "registered_country"):
        found = record.get(key)
        code = found.get("iso_code") if isinstance(found, dict) else found
        if isinstance(code, str) and len(code) == 2:
            return code.upper()
    return ""


def asn_in(record: object) -> int:
    """The autonomous system of a record: MaxMind's ``autonomous_system_number``, or ``asn``."""
    if not isinstance(record, dict):
        return 0
    for key in ("autonomous_system_number", "asn"):
        found = record.get(key)
        if isinstance(found, str):
            digits = found.upper().removeprefix("AS")
            found = int(digits) if digits.isascii() and digits.isdecimal() else 0
        if isinstance(found, int) and 0 < found < 1 << 32:
            return found
    return 0
