"""What is measured, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a scenario. ``key`` is its name in JSON; ``better`` which way is better."""

    key: str
    title: str
    unit: str
    better: Literal["more", "less"]
