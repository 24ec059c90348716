"""Fixtures of the tests that run a real gateway against a real kernel, each in its own lab."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from gateway.lab.lab import Lab

HERE = Path(__file__).parent
LOG_LINES = 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below this directory is a lab test."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.lab)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Without root, skip and say so, or fail where the lab is required."""
    if HERE in item.path.parents and os.geteuid() != 0:
        reason = "lab tests need root: they make network namespaces"
        if item.config.getoption("--require-lab"):
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the lab's processes wrote, under a test that failed."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, Lab):
                for log in sorted(value.directory.glob("*.log")):
                    lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
                    report.sections.append((log.name, "\n".join(lines)))
    return report


@pytest.fixture(scope="session", autouse=True)
def _no_leftovers() -> None:
    """Remove what killed runs left."""
    if os.geteuid() == 0:
        Lab.sweep()


@pytest.fixture
def bare_lab() -> Iterator[Lab]:
    """A fresh lab without servers."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def lab(bare_lab: Lab) -> Lab:
    """A fresh lab with the embedded servers running."""
    bare_lab.start_servers()
    return bare_lab


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Lab]:
    """A lab with servers that the tests of a module share."""
    with Lab() as lab:
        lab.start_servers()
        yield lab


# Of module scope, so that tests may share a gateway of one backend and mode.
@pytest.fixture(scope="module", params=["nftables", "iptables"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each firewall backend."""
    return str(request.param)


@pytest.fixture(scope="module", params=["tproxy", "redirect"])
def mode(request: pytest.FixtureRequest) -> str:
    """Each way of diverting TCP."""
    return str(request.param)


@pytest.fixture(scope="module")
def workers(backend: str, mode: str, pytestconfig: pytest.Config) -> int:
    """One process that carries flows, or two: each backend and each mode meets both in turn."""
    chosen: int | None = pytestconfig.getoption("--workers")
    return chosen or (1 if (backend == "nftables") == (mode == "tproxy") else 2)


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> int:
    """Each address family."""
    return int(request.param)
