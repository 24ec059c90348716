"""The reference of configuration keys, as Markdown, made from the schema itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gateway.config.schema import Config

#: What JSON schema calls a type, and what a person calls it.
_PLAIN = {
    "string": "text",
    "boolean": "true or false",
    "integer": "number",
    "ipv4": "address",
    "ipv6": "address",
    "ipv4network": "CIDR",
    "ipv6network": "CIDR",
    "ipv4interface": "address/length",
    "ipv6interface": "address/length",
    "password": "text",
}


def reference() -> str:
    """A Markdown table for each section: key, type, default, meaning."""
    schema = Config.model_json_schema()
    sections = [("", schema), *_sections(schema)]
    return "\n".join("\n".join(_table(title, part, schema)) for title, part in sections)


def _sections(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object below the top, titled as it is written where it stands first in the file."""
    seen: list[str] = []
    for key, value in schema["properties"].items():
        for title, part in _objects(key, value, schema):
            if "properties" in part and part["title"] not in seen:
                seen.append(part["title"])
                yield title, part


def _objects(
    path: str, part: dict[str, Any], schema: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    if "$ref" in part:
        found = _resolve(part, schema)
        kind = found.get("properties", {}).get("type", {}).get("const")
        yield (f"{path} (`type: {kind}`)" if kind else path), found
        for key, value in found.get("properties", {}).items():
            if "$ref" in value:
                yield from _objects(f"{path}.{key}", value, schema)
    for branch in part.get("oneOf", ()):
        yield from _objects(path, branch, schema)
    for named in part.get("patternProperties", {}).values():
        yield from _objects(f"{path}.NAME", named, schema)
    if isinstance(part.get("items"), dict):
        yield from _objects(f"{path}[]", part["items"], schema)


def _table(title: str, part: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    yield f"#### {title or 'Top level'}"
    yield ""
    yield "| key | type | default | meaning |"
    yield "| --- | --- | --- | --- |"
    required = part.get("required", ())
    for key, value in part["properties"].items():
        default = "**required**" if key in required else _default(value)
        meaning = value.get("description", "which kind this is")
        yield f"| `{key}` | {_type(value, schema)} | {default} | {meaning} |"
    yield ""


def _default(value: dict[str, Any]) -> str:
    default = value.get("default")
    if default in (None, "", []):
        return ""
    shown = str(default).lower() if isinstance(default, bool) else default
    return f"`{shown}`"


def _type(value: dict[str, Any], schema: dict[str, Any]) -> str:
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "$ref" in value:
        found = _resolve(value, schema)
        return "section" if "properties" in found else _type(found, schema)
    if "anyOf" in value:
        return _either(value["anyOf"], schema)
    if value.get("type") == "array":
        return f"list of {_type(value['items'], schema)}"
    if value.get("type") == "object":
        (named,) = value["patternProperties"].values()
        return f"by name: {_type(named, schema)}"
    if "oneOf" in value:
        return "section"
    kind = str(value.get("format") or value.get("type"))
    return _PLAIN.get(kind, kind)


def _either(branches: list[dict[str, Any]], schema: dict[str, Any]) -> str:
    """One value or a list of such reads as the list alone: a single one is always legal."""
    lists = [branch for branch in branches if branch.get("type") == "array"]
    shown = lists or [branch for branch in branches if branch.get("type") != "null"]
    return " or ".join(dict.fromkeys(_type(branch, schema) for branch in shown))


def _resolve(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][part["$ref"].rpartition("/")[2]]
    return found
