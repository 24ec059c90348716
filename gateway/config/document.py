"""A YAML file as plain data that still knows where each value stood.

Values are read by the core schema of YAML 1.2 (section 10.3.2), not by YAML 1.1 as
PyYAML does by default: there ``off`` is false and ``10:20`` is 620.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import yaml

from gateway.config.findings import Finding, Path, show_path
from gateway.errors import ConfigError, GatewayError, Problem

try:
    from yaml import CSafeLoader as _BaseLoader
except ImportError:  # PyYAML built without libyaml
    from yaml import SafeLoader as _BaseLoader  # type: ignore[assignment]

#: Far above what any key needs; libyaml's composer recurses, and would end the process.
MAX_DEPTH = 32
#: ``!env``, ``!file``, ``!credential``: the value stands elsewhere and is never shown.
SECRET_TAGS = frozenset({"!env", "!file", "!credential"})
#: Longest value that a problem shows.
SHOWN_CHARACTERS = 60

_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?[0-9]{1,20}|0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

#: Reads ``(tag, argument)`` of a secret; raises ``GatewayError`` with the cure as hint.
SecretReader = Callable[[str, str], str]


class _Loader(_BaseLoader):
    """The loader without YAML 1.1's implicit types: every plain scalar arrives as text."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - an attribute of PyYAML's


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: ``path`` exists, ``missing`` are keys that are not written."""

    path: Path
    missing: Path
    node: yaml.Node
    key: yaml.Node | None


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file: turns paths into lines, and findings into problems."""

    file: str
    root: yaml.Node

    def locate(self, path: Iterable[str | int]) -> Place:
        """Follow a path as far as it is written.

        The index of a single value that stands where a list may stand is left out.
        """
        node, key = self.root, None
        taken: list[str | int] = []
        missing: list[str | int] = []
        for step in path:
            if isinstance(node, yaml.MappingNode):
                found = next((pair for pair in node.value if pair[0].value == step), None)
                if found is None:
                    missing.append(step)
                    continue
                key, node = found
            elif isinstance(node, yaml.SequenceNode) and step in range(len(node.value)):
                key, node = None, node.value[step]
            else:
                continue
            taken.append(step)
        return Place(tuple(taken), tuple(missing), node, key)

    def problem(self, finding: Finding) -> Problem:
        """The finding with its line, column and value; a secret's value is left out."""
        place = self.locate(finding.path)
        secret = finding.secret or place.node.tag in SECRET_TAGS
        at_value = finding.at == "value" and not place.missing
        pointed = place.node if at_value or place.key is None else place.key
        if at_value:
            value = "" if secret else _shown(pointed)
        else:
            value = _shown(pointed) if finding.at == "key" and place.key is pointed else ""
        return _problem(
            self.file,
            pointed,
            show_path(place.path + place.missing),
            finding.message,
            value=value,
            # A cure may quote the value: `did you mean 192.168.1.0/24?`
            cure="" if secret and at_value else finding.cure,
        )

    def data(self, read_secret: SecretReader) -> tuple[object, list[Problem]]:
        """The file as dicts, lists and scalars, and what stood in the way of reading it.

        An unreadable value is replaced by text, so that the rest can still be validated.
        """
        reading = _Reading(self.file, read_secret)
        return reading.value(self.root, ()), reading.problems


def compose(text: str, file: str) -> Document:
    """Parse YAML. Raises ``ConfigError`` with one problem where that is not possible."""
    try:
        _refuse_depth(text, file)
        root = yaml.compose(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        message = "not YAML: " + ", ".join(filter(None, (error.context, error.problem)))
        cure = _syntax_cure(error.problem or "")
        problem = Problem(file, line, column, show_path(()), message, cure=cure)
        raise ConfigError((problem,)) from error
    except yaml.reader.ReaderError as error:
        # libyaml's own position counts bytes.
        before, _, _ = text.partition(chr(error.character))
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        message = f"not YAML: the character U+{error.character:04X} is not allowed"
        raise ConfigError((Problem(file, line, column, show_path(()), message),)) from error
    if root is None:
        cure = "`gateway init` writes one to start from"
        raise ConfigError((Problem(file, 1, 1, show_path(()), "is empty", cure=cure),))
    return Document(file, root)


def _refuse_depth(text: str, file: str) -> None:
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            message = f"nested deeper than {MAX_DEPTH} levels"
            raise ConfigError((_problem(file, event, show_path(()), message),))


def _syntax_cure(problem: str) -> str:
    if "mapping values are not allowed" in problem:
        return "put a value that has `: ` in it into quotes, and check the indentation"
    if "cannot start any token" in problem:
        return "indent with blanks, not tabs, and put a value with special characters into quotes"
    if "another document" in problem:
        return "keep one document: remove the `---` between them"
    return "check brackets, quotes and indentation at this line and the one before"


def _problem(
    file: str,
    node: yaml.Node | yaml.Event,
    path: str,
    message: str,
    *,
    value: str = "",
    cure: str = "",
) -> Problem:
    mark = node.start_mark
    assert mark is not None
    return Problem(file, mark.line + 1, mark.column + 1, path, message, value, cure)


def _shown(node: yaml.Node) -> str:
    """A value for people: short, and one line."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    text = " ".join(str(node.value).split())
    if len(text) > SHOWN_CHARACTERS:
        text = text[: SHOWN_CHARACTERS - 1] + "…"
    return text or "nothing"


def _plain_scalar(text: str) -> object:
    """A plain (unquoted) scalar by YAML 1.2's core schema."""
    if text in ("", "~", "null", "Null", "NULL"):
        return None
    if text in ("true", "True", "TRUE"):
        return True
    if text in ("false", "False", "FALSE"):
        return False
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0x", "0o") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


@dataclass(slots=True)
class _Reading:
    """One pass over the nodes of a document."""

    file: str
    read_secret: SecretReader
    problems: list[Problem] = field(default_factory=list)
    # By node, because an alias is the same node again: each is read once, so that a few
    # aliases of aliases cannot grow without bound. A node that is being read has no entry
    # here but stands in `open`.
    done: dict[yaml.Node, object] = field(default_factory=dict)
    open: set[yaml.Node] = field(default_factory=set)

    def value(self, node: yaml.Node, path: Path) -> object:
        if node in self.open:
            self._report(node, path, "an alias of what it stands in")
            return ""
        if node not in self.done:
            self.open.add(node)
            self.done[node] = self._read(node, path)
            self.open.remove(node)
        return self.done[node]

    def _read(self, node: yaml.Node, path: Path) -> object:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            if node.tag in SECRET_TAGS:
                return self._secret(node, path)
            if node.tag == f"{_TAG}str":
                return node.value if node.style else _plain_scalar(node.value)
        known = ", ".join(sorted(SECRET_TAGS))
        self._report(node, path, f"the tag {node.tag} has no meaning here", f"known: {known}")
        return ""

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, object]:
        values: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._report(key, path, "a key must be text")
                continue
            name = key.value
            if name in values:
                message = f"this key stands here twice, first on line {lines[name]}"
                self._report(key, (*path, name), message, "keep one of them")
                continue
            lines[name] = key.start_mark.line + 1
            values[name] = self.value(item, (*path, name))
        return values

    def _secret(self, node: yaml.ScalarNode, path: Path) -> str:
        try:
            return self.read_secret(node.tag, node.value)
        except GatewayError as error:
            self._report(node, path, str(error), error.hint)
            return "unreadable"

    def _report(self, node: yaml.Node, path: Path, message: str, cure: str = "") -> None:
        self.problems.append(_problem(self.file, node, show_path(path), message, cure=cure))
