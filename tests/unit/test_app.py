"""The life of a gateway, where no kernel is needed to see it."""

from __future__ import annotations

import asyncio
import errno
import logging

import pytest

from gateway import app, kernel_state
from gateway.app import Gateway
from gateway.errors import ApplyError
from gateway.kernel.applier import Report
from gateway.kernel_state import KernelState
from gateway.plan.model import Backend, Plan


@pytest.fixture
def waits(monkeypatch):
    """How long was waited, without waiting."""
    told = []

    async def sleep(seconds):
        told.append(seconds)

    monkeypatch.setattr(app.asyncio, "sleep", sleep)
    return told


def test_a_change_of_the_network_is_adopted_in_the_end(tmp_path, monkeypatch, waits, caplog):
    """Another event may never come, and a want of descriptors must not end the gateway."""
    refusals = [OSError(errno.EMFILE, "Too many open files"), ApplyError("busy", "wait"), None]
    left = iter(refusals)

    async def adopt(_self):
        if (refusal := next(left)) is not None:
            raise refusal

    monkeypatch.setattr(Gateway, "_adopt", adopt)
    asyncio.run(Gateway(tmp_path / "gateway.yaml", tmp_path)._network_changed())
    assert waits == [app.FIRST_RETRY_S, 2 * app.FIRST_RETRY_S]
    assert next(left, "all") == "all"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    assert "Too many open files" in caplog.text
    assert "busy" in caplog.text


def test_what_stands_in_the_way_of_a_plan_is_logged_once(tmp_path, monkeypatch, caplog):
    """A foreign chain that refuses what is diverted is nothing to be found out by packets."""
    told = [("chain A",), ("chain A", "chain B"), (), ("chain A",)]

    class Applier:
        def __init__(self, _run_dir):
            pass

        def apply(self, _plan, _spare):
            return Report(("a step",), told.pop(0))

    monkeypatch.setattr(kernel_state, "Applier", Applier)
    state = KernelState(tmp_path)

    async def four_times():
        return [await state.apply(Plan(Backend.NFTABLES)) for _ in range(4)]

    assert asyncio.run(four_times()) == [("a step",)] * 4
    assert [record.message for record in caplog.records] == ["chain A", "chain B", "chain A"]
