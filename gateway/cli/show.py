"""How commands show values: JSON for programs, aligned columns for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from gateway.errors import GatewayError

_UNITS = ("kB", "MB", "GB", "TB")


def print_json(value: object) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2))


def write(path: Path, text: str) -> None:
    """Put a result into a file. Raises ``GatewayError`` where that cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise GatewayError(
            f"cannot write {path}: {error.strerror}", "give a path that can be written to"
        ) from error


def columns(rows: Sequence[Sequence[str]]) -> str:
    """``rows`` as text, each column as wide as its longest cell; never cut, so pipes see all."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def amount(count: int) -> str:
    """A number of bytes in decimal units: ``2.5 MB``."""
    if count < 1000:
        return f"{count} B"
    power = min((len(str(count)) - 1) // 3, len(_UNITS))
    return f"{count / 1000**power:.1f} {_UNITS[power - 1]}"


def span(seconds: float) -> str:
    """A duration with its two largest units: ``1 h 2 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
