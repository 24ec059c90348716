"""The iptables backend: legacy tables, changed by one short-lived worker for each family."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from gateway.errors import ApplyError
from gateway.kernel.children import undisturbed
from gateway.kernel.iptables_job import Reply, Request
from gateway.kernel.iptables_worker import present_tables
from gateway.kernel.step import Step
from gateway.plan.addresses import Family
from gateway.plan.model import Plan
from gateway.plan.snapshot import ChainKey
from gateway.plan.xt import XtTable, xt_tables

_WORKER_TIMEOUT_S = 60.0
#: The worker finds this package in a checkout too; and python-iptables, which asks distutils
#: for one path, does not drag setuptools' version of it in (twice as slow to start).
_ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "SETUPTOOLS_USE_DISTUTILS": "stdlib",
}

Chains = dict[ChainKey, tuple[str, ...]]
Tables = tuple[XtTable, ...]
#: A worker, and what it is to be told.
_Started = tuple[subprocess.Popen[bytes], bytes]


def apply(plan: Plan) -> Step | None:
    """Make the chains as planned; None where they are so already.

    Raises ``ApplyError``; the chains of both families are then as they were.
    """
    return _apply({family: xt_tables(plan, family) for family in Family}, "chains loaded")


def remove() -> Step | None:
    """Take away every chain and jump of ours; None where there is none. Raises ``ApplyError``."""
    return _apply(dict.fromkeys(Family, ()), "chains deleted")


def read() -> Chains:
    """The tags of each chain of ours, and those of our jumps under the built-in chains."""
    requests = [Request(family, "read") for family in Family if present_tables(family)]
    found: Chains = {}
    for request, reply in zip(requests, run(requests), strict=True):
        _raise_if_failed([reply])
        family = request.family
        for table in reply.tables:
            for chain in table.chains:
                tags = tuple(rule.tag for rule in chain.rules)
                found[ChainKey(table.name, chain.name, family.value)] = tags
                if chain.hook:
                    jump = ChainKey(table.name, chain.hook, family.value)
                    found[jump] = (*found.get(jump, ()), chain.jump.tag)
    return found


def run(requests: Sequence[Request]) -> list[Reply]:
    """One worker for each request, side by side; replies in the same order."""
    workers = [_start(request) for request in requests]
    return [_finish(worker) for worker in workers]


def _apply(wanted: dict[Family, Tables], what: str) -> Step | None:
    requests = [
        Request(family, "apply", tables)
        for family, tables in wanted.items()
        if tables or present_tables(family)
    ]
    replies = run(requests)
    before = {
        request.family: reply.tables
        for request, reply in zip(requests, replies, strict=True)
        if reply.changed
    }

    def undo() -> None:
        _raise_if_failed(run([Request(family, "apply", old) for family, old in before.items()]))

    try:
        _raise_if_failed(replies)
    except ApplyError as error:
        try:
            undo()
        except ApplyError as second:
            error.add_note(f"and taking it back failed: {second}")
        raise
    return Step(f"iptables: {what}", undo) if before else None


def _raise_if_failed(replies: Sequence[Reply]) -> None:
    failed = [reply for reply in replies if reply.error]
    if failed:
        raise ApplyError("; ".join(reply.error for reply in failed), hint=failed[0].hint)


def _start(request: Request) -> _Started | Reply:
    try:
        with undisturbed():
            worker = subprocess.Popen(
                [sys.executable, "-m", "gateway.kernel.iptables_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=os.environ | _ENVIRONMENT,
            )
    except OSError as error:
        # Not raised: the other family's worker may have begun.
        return Reply(error=f"the iptables worker cannot be started: {error.strerror}")
    return worker, pickle.dumps(request)


def _finish(started: _Started | Reply) -> Reply:
    if isinstance(started, Reply):
        return started
    worker, request = started
    with worker:
        try:
            output, errors = worker.communicate(request, timeout=_WORKER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            return Reply(error=f"the iptables worker did not answer in {_WORKER_TIMEOUT_S:.0f} s")
    if worker.returncode != 0:
        said = errors.decode(errors="replace").strip().splitlines()
        return Reply(error=f"the iptables worker failed: {said[-1] if said else 'no message'}")
    reply: Reply = pickle.loads(output)  # noqa: S301 - our own process
    return reply
