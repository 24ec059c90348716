"""The life of a gateway, where no kernel is needed to see it."""

from __future__ import annotations

import asyncio
import errno
import logging
from types import SimpleNamespace

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


def test_a_list_that_could_not_be_put_in_force_is_tried_again(tmp_path, monkeypatch):
    """The store tells of a change once; the kernel may have no room for it just then."""
    changes, refusals, in_force = [["ads"], []], [ApplyError("no room"), None], []

    class Store:
        def changed(self):
            return changes.pop(0)

        def refresh(self):
            """Nothing to read."""

        forget_old = refresh

    async def apply(_self, _plan, _spare=None):
        if (refusal := refusals.pop(0)) is not None:
            raise refusal

    async def put_in_force(_self, fresh, _found):
        in_force.append(fresh)

    fresh = SimpleNamespace(plan=Plan(Backend.NFTABLES), store=Store())
    monkeypatch.setattr(app, "with_fresh_sets", lambda _assembly: fresh)
    monkeypatch.setattr(KernelState, "apply", apply)
    monkeypatch.setattr(Gateway, "_put_in_force", put_in_force)
    gateway = Gateway(tmp_path / "gateway.yaml", tmp_path)
    gateway._assembly, gateway._found = fresh, ()

    async def thrice():
        await gateway._attempt(gateway._reread_lists)
        assert in_force == []
        await gateway._attempt(gateway._reread_lists)
        changes.append([])
        await gateway._attempt(gateway._reread_lists)

    asyncio.run(thrice())
    assert in_force == [fresh]


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
