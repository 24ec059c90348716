"""From a file to a configuration: the only place in this package that opens files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from gateway.config.check import check
from gateway.config.document import Document, SecretReader, compose
from gateway.config.explain import explain
from gateway.config.findings import Finding, show_path
from gateway.config.findings import Path as KeyPath
from gateway.config.repair import set_aside
from gateway.config.schema import Config
from gateway.config.secrets import Secrets
from gateway.config.shipped import shipped_names
from gateway.errors import ConfigError, GatewayError, Problem

_Model = TypeVar("_Model", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A legal configuration, and the document that turns its paths into lines."""

    config: Config
    source: Document


def load(path: Path) -> Loaded:
    """Read and check a file.

    Secrets come from this process's environment. Raises ``ConfigError`` with all
    problems in the order of the file.
    """
    secrets = Secrets(os.environ, path.parent, read_text)
    try:
        text = read_text(path)
    except GatewayError as error:
        message = str(error).removeprefix(f"{path} ")
        problem = Problem(str(path), 1, 1, show_path(()), message, cure=error.hint)
        raise ConfigError((problem,)) from error
    return parse(text, str(path), resolve_secret=secrets.resolve, shipped=shipped_names())


def parse(
    text: str,
    file: str,
    *,
    resolve_secret: SecretReader,
    shipped: frozenset[str] = frozenset(),
) -> Loaded:
    """Check a configuration's text.

    ``file`` names it in problems; ``shipped`` are the rule sets that need no entry.
    Raises ``ConfigError`` with all problems.
    """
    document = compose(text, file)
    data, problems = document.data(resolve_secret)
    config, findings = _validated(data, document, shipped)
    problems = _in_file_order(problems, (document.problem(finding) for finding in findings))
    if problems or config is None:
        raise ConfigError(tuple(problems))
    return Loaded(config, document)


def parse_as(model: type[_Model], text: str, file: str) -> tuple[_Model, Document]:
    """Read any other file with a schema. Raises ``ConfigError``; secrets are not allowed."""
    document = compose(text, file)
    data, problems = document.data(_no_secrets)
    try:
        value = model.model_validate(data)
    except ValidationError as error:
        found = (document.problem(finding) for finding in explain(error, document, model))
        raise ConfigError(tuple(_in_file_order(problems, found))) from None
    if problems:
        raise ConfigError(tuple(problems))
    return value, document


def read_text(path: Path) -> str:
    """A file's text. Raises ``GatewayError`` whose message begins with the path."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise GatewayError(
            f"{path} does not exist", "check the path; `gateway init` writes a configuration"
        ) from error
    except IsADirectoryError as error:
        raise GatewayError(f"{path} is a directory", "give the path of a file") from error
    except PermissionError as error:
        raise GatewayError(
            f"{path} may not be read", "run this as root, or check the file's permissions"
        ) from error
    except UnicodeDecodeError as error:
        raise GatewayError(
            f"{path} is not UTF-8: byte {error.start + 1} is {error.object[error.start]:#04x}",
            "save it as UTF-8",
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise GatewayError(f"{path} cannot be read: {reason}", "check its permissions") from error


def _no_secrets(tag: str, _argument: str) -> str:
    raise GatewayError(f"{tag} has no meaning here", "write the value itself")


def _validated(
    data: object, document: Document, shipped: frozenset[str]
) -> tuple[Config | None, list[Finding]]:
    """The configuration, or what is wrong with it: key by key first, then across keys."""
    try:
        return _checked(Config.model_validate(data), shipped, ())
    except ValidationError as error:
        findings = list(explain(error, document, Config))
    # Keys go last: a bad value below a bad key would bring the key back.
    broken = [set_aside(data, each) for each in sorted(findings, key=lambda each: each.at == "key")]
    parts = tuple(part for part in broken if part is not None)
    if len(parts) < len(broken):
        return None, findings
    try:
        rest = Config.model_validate(data)
    except ValidationError:
        return None, findings
    return None, findings + _checked(rest, shipped, parts)[1]


def _checked(
    config: Config, shipped: frozenset[str], broken: tuple[KeyPath, ...]
) -> tuple[Config, list[Finding]]:
    found = check(config, shipped)
    return config, [
        each for each in found if not any(each.path[: len(part)] == part for part in broken)
    ]


def _in_file_order(first: Iterable[Problem], then: Iterable[Problem]) -> list[Problem]:
    """Both lists by line and column; where the first has a problem, the second adds none."""
    problems = list(first)
    taken = {(problem.line, problem.column) for problem in problems}
    problems += [problem for problem in then if (problem.line, problem.column) not in taken]
    return sorted(problems, key=lambda problem: (problem.line, problem.column))
