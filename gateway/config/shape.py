"""What the schema says about a place: its keys, whether it is a secret, what it is for."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from pydantic import BaseModel

#: A part of a JSON schema, as pydantic makes it.
_Part = dict[str, Any]


class Shape:
    """A model's JSON schema, asked by the paths of pydantic's errors."""

    def __init__(self, model: type[BaseModel]) -> None:
        self._root: _Part = model.model_json_schema()
        self._definitions: _Part = self._root.get("$defs", {})

    def keys(self, path: Iterable[str | int]) -> dict[str, str]:
        """The keys that may stand at a path, with their descriptions."""
        properties: _Part = self._at(path).get("properties", {})
        return {key: part.get("description", "") for key, part in properties.items()}

    def is_secret(self, path: Iterable[str | int]) -> bool:
        """Whether the value at a path must not be shown."""
        return any(part.get("writeOnly", False) for part in self._branches(self._at(path)))

    def _at(self, path: Iterable[str | int]) -> _Part:
        part = self._root
        for step in path:
            part = self._step(part, step)
        return part

    def _step(self, part: _Part, step: str | int) -> _Part:
        """One step down; a step that is not in the schema stays where it is."""
        for branch in self._branches(part):
            if isinstance(step, int):
                inner = branch.get("items")
            else:
                inner = branch.get("properties", {}).get(step)
                inner = inner or branch.get("discriminator", {}).get("mapping", {}).get(step)
                inner = inner or next(iter(branch.get("patternProperties", {}).values()), None)
            if inner:
                return self._resolve(inner)
        return part

    def _branches(self, part: _Part) -> list[_Part]:
        """A part and the alternatives in it (``anyOf`` of an optional or single value)."""
        return [part, *(self._resolve(branch) for branch in part.get("anyOf", ()))]

    def _resolve(self, part: _Part | str) -> _Part:
        """A part itself, where a reference (``#/$defs/Rule``) stands for it."""
        reference = part if isinstance(part, str) else part.get("$ref")
        if reference is None:
            assert isinstance(part, dict)
            return part
        resolved: _Part = self._definitions[reference.rsplit("/", 1)[-1]]
        return resolved


#: The shape of a model. Kept, for pydantic makes a schema slowly, and a model never changes.
shape_of = cache(Shape)
