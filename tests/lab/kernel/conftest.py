from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.kernel.applier import Applier
from gateway.plan.model import Backend

from .namespace import Namespace


@pytest.fixture
def ns() -> Iterator[Namespace]:
    namespace = Namespace()
    yield namespace
    namespace.close()


@pytest.fixture(params=list(Backend))
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture
def applier(tmp_path: Path) -> Applier:
    return Applier(tmp_path / "run")
