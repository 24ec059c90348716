"""Rule sets: named lists of prefixes, shipped with the gateway or the owner's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from pydantic_core import PydanticCustomError

from gateway.config.findings import Finding
from gateway.config.load import Loaded, parse_as, read_text
from gateway.config.scalars import read_network
from gateway.config.schema import Config, InlineRuleSet, Model, Networks
from gateway.config.shipped import shipped_directory
from gateway.errors import ConfigError, GatewayError, Problem
from gateway.policy.prefixes import Network


@dataclass(frozen=True, slots=True)
class RuleSetData:
    """What is in a rule set, and where it comes from."""

    name: str
    networks: tuple[Network, ...]
    description: str = ""
    source: str = ""
    licence: str = ""


class _RuleSetFile(Model):
    """A rule set's file in YAML."""

    name: str = Field(default="", description="the set's name, for people")
    description: str = Field(default="", description="what is in it, and what for")
    source: str = Field(default="", description="where the entries come from")
    licence: str = Field(default="", description="under which terms they may be passed on")
    entries: Networks = Field(description="CIDRs and addresses")


def load_rule_sets(loaded: Loaded) -> dict[str, RuleSetData]:
    """Every rule set that a rule names; the owner's go before shipped ones of the same name.

    Paths are relative to the configuration file. Raises ``ConfigError`` with the problems
    of all files.
    """
    sets: dict[str, RuleSetData] = {}
    problems: list[Problem] = []
    for name in sorted(_named(loaded.config)):
        try:
            sets[name] = _load(name, loaded)
        except ConfigError as error:
            problems.extend(error.problems)
    if problems:
        raise ConfigError(tuple(problems))
    return sets


def _named(config: Config) -> set[str]:
    """The rule sets that rules use, and those written down, which must be readable too."""
    used = {name for rule in config.rules for name in rule.rule_set}
    used |= {entry for rule in config.rules for entry in rule.destination if isinstance(entry, str)}
    return used | set(config.rule_sets)


def _load(name: str, loaded: Loaded) -> RuleSetData:
    own = loaded.config.rule_sets.get(name)
    if isinstance(own, InlineRuleSet):
        return RuleSetData(name, own.entries)
    if own is None:
        path = shipped_directory() / f"{name}.yaml"
    else:
        path = Path(loaded.source.file).parent / own.path
    try:
        text = read_text(path)
    except GatewayError as error:
        finding = Finding(("rule_sets", name, "path"), str(error), "check the path, and the file")
        raise ConfigError((loaded.source.problem(finding),)) from error
    return parse_rule_set(text, name, path)


def parse_rule_set(text: str, name: str, path: Path) -> RuleSetData:
    """Read a rule set: YAML by the file's ending, else one entry a line, ``#`` comments.

    Raises ``ConfigError`` with all problems.
    """
    if path.suffix in (".yaml", ".yml"):
        file, _ = parse_as(_RuleSetFile, text, str(path))
        return RuleSetData(name, file.entries, file.description, file.source, file.licence)
    problems: list[Problem] = []
    networks = tuple(_lines(text, str(path), problems))
    if problems:
        raise ConfigError(tuple(problems))
    return RuleSetData(name, networks)


def _lines(text: str, file: str, problems: list[Problem]) -> Iterator[Network]:
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            yield read_network(entry)
        except PydanticCustomError as error:
            context = error.context or {}
            column = line.index(entry) + 1
            problems.append(
                Problem(file, number, column, "entry", error.message(), entry[:60], context["cure"])
            )
