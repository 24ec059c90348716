"""The databases of a configuration that say where addresses are."""

from __future__ import annotations

from pathlib import Path

from gateway.config.findings import Finding
from gateway.errors import ConfigError, GatewayError, Problem
from gateway.policy.geo import MmdbGeography
from gateway.rulesets.store import RuleSetStore


def open_geography(store: RuleSetStore) -> MmdbGeography | None:
    """The databases of the store's configuration; None where it names none.

    Paths are relative to the configuration file. Blocks while a file is read that was not
    known before. Raises ``ConfigError`` with the problems of all files.
    """
    geo, source = store.config.geo, store.loaded.source
    if not geo.country and not geo.asn:
        return None
    folder = Path(source.file).parent
    copies: dict[str, str] = {}
    problems: list[Problem] = []
    for key, path in (("country", geo.country), ("asn", geo.asn)):
        if not path:
            continue
        try:
            copies[key] = str(store.database((folder / path).resolve()))
        except GatewayError as error:
            finding = Finding(("geo", key), str(error), error.hint)
            problems.append(source.problem(finding))
    if problems:
        raise ConfigError(tuple(problems))
    return MmdbGeography(**copies)
