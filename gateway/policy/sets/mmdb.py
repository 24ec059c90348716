"""The prefixes of one country, or of one autonomous system, out of a MaxMind database."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import maxminddb
from maxminddb.const import Mode

from gateway.errors import GatewayError
from gateway.policy.prefixes import interval
from gateway.policy.sets.entries import Entries
from gateway.policy.sets.lines import Progress

_PERIOD: Final = 1 << 14
_CURE: Final = "get it anew: a database in MaxMind's format, unpacked"
#: What the library's readers let through where a file says what it cannot mean.
_DAMAGED: Final = (
    maxminddb.InvalidDatabaseError, ValueError, TypeError, ArithmeticError, LookupError,
    RecursionError, MemoryError,
)  # fmt: skip


def read_mmdb(
    path: Path,
    select: str,
    entries: Entries,
    progress: Progress,
    mode: Mode = Mode.AUTO,
) -> None:
    """What ``NL`` (ISO 3166), ``continent:EU`` or ``AS64500`` has.

    Raises ``GatewayError``. The library's fast reader does not survive every damaged
    file: read in a process that may be lost, or with the ``mode`` of the slow one.
    """
    kind, _, wanted = select.rpartition(":")
    if not wanted:
        raise GatewayError(
            "has many countries or networks", "`select:` one, such as NL, continent:EU or AS64500"
        )
    found = 0
    try:
        with maxminddb.open_database(path, mode) as database:
            nodes = max(database.metadata().node_count, 1)
            for number, (network, record) in enumerate(database):
                if _is_meant(record, kind, wanted.upper()):
                    entries.intervals.append(interval(network))
                    found += 1
                if not number % _PERIOD:
                    progress(min(number / nodes, 1))
    except _DAMAGED as error:
        raise GatewayError(f"not an MMDB file, or a damaged one: {error}", _CURE) from error
    if not found:
        raise GatewayError(f"has nothing for {select!r}", "check `select:`")


def read_whole(path: Path) -> None:
    """Read every record. Raises ``GatewayError`` where one cannot be read; see ``read_mmdb``."""
    try:
        with maxminddb.open_database(path, Mode.AUTO) as database:
            for _ in database:
                pass
    except _DAMAGED as error:
        raise GatewayError(f"not an MMDB file, or a damaged one: {error}", _CURE) from error


def _is_meant(record: Any, kind: str, wanted: str) -> bool:
    if not isinstance(record, dict):
        return False
    if kind == "continent":
        return _code(record, "continent", "code") == wanted
    number = record.get("autonomous_system_number")
    if number is not None and wanted.startswith("AS"):
        return f"AS{number}" == wanted
    country = record.get("country_code")  # flat, as ip-location-db has it
    if isinstance(country, str):
        return country.upper() == wanted
    return _code(record, "country", "iso_code") == wanted


def _code(record: dict[str, Any], part: str, key: str) -> str:
    inner = record.get(part)
    code = inner.get(key) if isinstance(inner, dict) else None
    return code.upper() if isinstance(code, str) else ""
