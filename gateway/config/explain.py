"""pydantic's errors as sentences for people, with the cure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gateway.config.document import Document
from gateway.config.findings import Finding, did_you_mean
from gateway.config.scalars import (
    CGROUP_PATTERN,
    CONGESTION_PATTERN,
    INTERFACE_PATTERN,
    NAME_PATTERN,
    URL_PATTERN,
)
from gateway.config.shape import Shape, shape_of

_MAPPING = ("must be a mapping", "write `key: value` lines below it, or leave the key out")
_BOOLEAN = ("must be true or false", "")
_WHOLE = ("must be a whole number", "write digits only, such as 7895")
_NUMBER = ("must be a number", "write seconds as a plain number, such as 10 or 0.5")

#: Message and cure by pydantic's error type, where the cure does not depend on the value.
_PLAIN = {
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "tuple_type": ("must be a list", "write `- ` before each entry"),
    "too_short": ("must have at least one entry", ""),
    "string_too_short": ("must not be empty", "write it, or leave the key out"),
    "string_type": ("must be text", "put the value into quotes"),
    "bool_type": _BOOLEAN,
    "bool_parsing": _BOOLEAN,
    "int_type": _WHOLE,
    "int_parsing": _WHOLE,
    "int_from_float": _WHOLE,
    "float_type": _NUMBER,
    "float_parsing": _NUMBER,
}

_PATTERNS = {
    NAME_PATTERN: (
        "not a name",
        "use letters, digits, `_`, `.` and `-`; 32 at most; a letter or digit first",
    ),
    INTERFACE_PATTERN: (
        "not an interface's name",
        "15 characters at most, no blanks, `/` or `:`; `ip -brief link` lists them",
    ),
    CGROUP_PATTERN: (
        "not a control group",
        "write its path below /sys/fs/cgroup, such as system.slice/ssh-socks.service",
    ),
    CONGESTION_PATTERN: (
        "not a congestion control",
        "`sysctl net.ipv4.tcp_available_congestion_control` lists those of this kernel",
    ),
    URL_PATTERN: ("not a URL of http or https", "write http://HOST/PATH or https://HOST/PATH"),
}


def explain(
    error: ValidationError, document: Document, model: type[BaseModel]
) -> Iterator[Finding]:
    """One finding for each error."""
    shape = shape_of(model)
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # the list is short because its entries are bad, which is said already
        finding = _finding(detail, document, shape)
        yield replace(finding, secret=shape.is_secret(detail["loc"]))


def _finding(detail: ErrorDetails, document: Document, shape: Shape) -> Finding:
    kind, loc, context = detail["type"], detail["loc"], detail.get("ctx", {})
    path = document.locate(loc).path
    if kind == "value":
        return Finding(path, context["message"], context["cure"])
    if kind == "missing":
        key = str(loc[-1])
        meaning = shape.keys(loc[:-1])[key]
        parent = document.locate(loc[:-1]).path
        return Finding((*parent, key), "is missing", f"write `{key}: …`: {meaning}")
    if kind == "extra_forbidden":
        known = shape.keys(loc[:-1])
        return Finding(path, "unknown key", did_you_mean(str(loc[-1]), known, "keys here"), "key")
    if kind == "union_tag_not_found":
        return Finding((*path, "type"), "is missing", "write `type: …`: what kind it is")
    if kind in ("union_tag_invalid", "literal_error"):
        expected = context.get("expected_tags") or context["expected"].replace(" or ", ", ")
        choices = [choice.strip("'") for choice in expected.split(", ")]
        path = (*path, "type") if kind == "union_tag_invalid" else path
        cure = did_you_mean(str(context.get("tag", detail["input"])), choices, "choices")
        return Finding(path, "not one of the choices", cure)
    if kind == "string_pattern_mismatch":
        message, cure = _PATTERNS[context["pattern"]]
        return Finding(path, message, cure, at="key" if loc[-1] == "[key]" else "value")
    if kind in _PLAIN:
        return Finding(path, *_PLAIN[kind])
    # The bounds: `Input should be less than or equal to 65535`
    message = detail["msg"].replace("Input should", "must").replace("String should", "must")
    return Finding(path, message, shape.keys(loc[:-1]).get(str(loc[-1]), ""))
