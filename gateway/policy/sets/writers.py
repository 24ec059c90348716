"""A rule set written out again, as a list that others can read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Final

from gateway.config.domains import DomainKind, DomainPattern
from gateway.policy.prefixes import Network
from gateway.policy.rulesets import RuleSetData

_CLASSICAL: Final = {
    DomainKind.EXACT: "DOMAIN",
    DomainKind.SUFFIX: "DOMAIN-SUFFIX",
    DomainKind.KEYWORD: "DOMAIN-KEYWORD",
    DomainKind.REGEX: "DOMAIN-REGEX",
}


def text_lines(data: RuleSetData) -> Iterator[str]:
    """One entry a line, as our configuration writes them."""
    yield from map(str, _entries(data))


def yaml_lines(data: RuleSetData) -> Iterator[str]:
    """Our own YAML, with what the list says about itself."""
    yield f"name: {json.dumps(data.name)}"
    for key, value in data.about._asdict().items():
        if value:
            yield f"{key}: {json.dumps(value)}"
    yield "entries:"
    for entry in _entries(data):
        yield f"  - {json.dumps(str(entry))}"


def clash_lines(data: RuleSetData) -> Iterator[str]:
    """A Clash provider of the behaviour ``classical``."""
    yield "payload:"
    for entry in _entries(data):
        yield f"  - {json.dumps(_classical(entry))}"


def _entries(data: RuleSetData) -> Iterator[DomainPattern | Network]:
    yield from data.names.patterns()
    yield from data.prefixes.networks()


def _classical(entry: DomainPattern | Network) -> str:
    if not isinstance(entry, DomainPattern):
        return f"IP-CIDR{'6' if entry.version == 6 else ''},{entry}"
    if entry.kind is DomainKind.BELOW:
        return rf"DOMAIN-REGEX,\.{re.escape(entry.text)}$"
    if entry.kind is DomainKind.CHILD:
        return rf"DOMAIN-REGEX,^[^.]+\.{re.escape(entry.text)}$"
    return f"{_CLASSICAL[entry.kind]},{entry.text}"


#: By the name that a person gives.
WRITERS: Final[dict[str, Callable[[RuleSetData], Iterator[str]]]] = {
    "yaml": yaml_lines,
    "text": text_lines,
    "clash": clash_lines,
}
