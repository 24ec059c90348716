"""Where the rule sets lie that come with the gateway."""

from __future__ import annotations

from pathlib import Path


def shipped_directory() -> Path:
    """``gateway/_rules`` of an installed package, ``rules/`` beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_rules"
    return installed if installed.is_dir() else package.parent / "rules"


def shipped_names() -> frozenset[str]:
    """The names of the rule sets that need no entry in the configuration."""
    return frozenset(path.stem for path in shipped_directory().glob("*.yaml"))
