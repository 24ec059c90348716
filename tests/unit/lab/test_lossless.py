"""What is offered to all: a part of the highest rate that the best peer carried without loss."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.lab.bench import lossless
from gateway.lab.bench.suite import Sizes
from gateway.lab.process import LabError

NOBODY: Any = None


def test_the_same_part_of_the_best_peers_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def offer(_rig: object, rate: float, _seconds: float) -> tuple[float, float]:
        asked.append(rate)
        return rate, 0.25

    monkeypatch.setattr(lossless, "_offer", offer)
    found = {"this": 9000.0, "one": 5000.0, "other": 4000.0}
    measured = lossless._measure_part(found, ("one", "other"), NOBODY, Sizes())
    assert asked == [lossless.PART * 5000.0]
    assert measured == {"part_rate": asked[0] / 1e3, "part_arrived": 75.0}


def test_without_a_peer_there_is_nothing_to_offer() -> None:
    with pytest.raises(LabError, match="no peer's"):
        lossless._measure_part({"this": 9000.0}, ("one",), NOBODY, Sizes())
