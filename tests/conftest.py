"""What every test may use: golden texts, and hypothesis' profiles."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers

GOLDEN = Path(__file__).parent / "golden"

# Timings are never asserted: a loaded machine is not a defect. The same examples each time, so
# that what passed passes; HYPOTHESIS_PROFILE=deep looks for others, new ones in each run.
_timeless = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fast", _timeless, max_examples=100, derandomize=True)
settings.register_profile("deep", _timeless, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


# Where the tests themselves were started in a shell's background, all that they start would be
# deaf to the interrupts that they send (POSIX, sh: asynchronous lists ignore SIGINT).
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden texts anew; review the difference before you commit it",
    )
    parser.addoption(
        "--require-lab",
        action="store_true",
        help="fail the lab tests where they cannot run, instead of skipping them",
    )
    parser.addoption(
        "--workers",
        type=int,
        help="how many workers gateways of the lab have, where tests would take one or two in turn",
    )


def pytest_collection_finish() -> None:
    """Hypothesis takes constants of modules for examples: from now on, of no others than these.

    Else examples would depend on what tests have imported that happened to run before.
    """
    constants = providers._get_local_constants()
    providers._get_local_constants = lambda: constants


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """``golden("plan/lan.nft", text)``: the text equals the file below tests/golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing: run pytest --update-golden and review it"
        assert text == path.read_text(encoding="utf-8")

    return compare
