"""``gateway bench idle``: what a flow costs while nothing moves on it."""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from gateway.lab import peers
from gateway.lab.bench.candidates import others, this_gateway
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Clients, Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite

#: A flow of this gateway has two descriptors; some peers open pipes for each, or reckon with more.
_OWN_DESCRIPTORS, _PEERS_DESCRIPTORS = 2, 8
#: The share of its descriptors that a process is asked to use for flows: the kernel spreads
#: them over workers by chance.
_FILL: Final = 0.85
#: Before the first count this part of the flows is opened: what any first flow needs is there.
_FIRST_PART: Final = 10
#: Once all are open, until what was busy has come to rest (seconds).
_REST_S: Final = 1.0


def suite(flows: int) -> Suite:
    """With as many workers of this gateway, and servers, as descriptors for ``flows`` take."""
    gateway = this_gateway(workers=workers_for(flows))
    return Suite(
        "idle",
        (gateway, *others()),
        (IDLE,),
        baseline=gateway.name,
        servers=processes_for(flows, 1),
        sizes=Sizes(rounds=1, idle_flows=flows),
        missing=peers.missing(),
    )


def workers_for(flows: int) -> int:
    """One for each core, and more where descriptors need them."""
    return max(os.cpu_count() or 1, processes_for(flows, _OWN_DESCRIPTORS))


def processes_for(flows: int, descriptors: int) -> int:
    """How many hold ``flows``, each with so many descriptors (``RLIMIT_NOFILE``, getrlimit(2))."""
    return math.ceil(flows * descriptors / (_limit() * _FILL))


def _limit() -> int:
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


@contextmanager
def idle_clients(
    rig: Rig, flows: int, second_family: Literal[4, 6] = 4
) -> Iterator[tuple[Clients, Clients]]:
    """Both clients of the lab, opening ``flows`` between them, the first over IPv4."""
    half = flows // 2
    with (
        rig.clients("idle", half) as desk,
        rig.clients("idle", flows - half, second_family, "kid") as kid,
    ):
        yield desk, kid


@contextmanager
def _idle_flows(rig: Rig, flows: int) -> Iterator[None]:
    with idle_clients(rig, flows) as (desk, kid):
        desk.wait_established(flows // 2)
        kid.wait_established(flows - flows // 2)
        yield


@dataclass(frozen=True, slots=True)
class Use:
    """Of all processes of a candidate."""

    base_bytes: int
    own_bytes: int
    descriptors: int

    @classmethod
    def of(cls, rig: Rig) -> Use:
        """Now that it is at rest."""
        time.sleep(_REST_S)
        return cls(rig.memory_bytes(), rig.anonymous_bytes(), rig.descriptors())


def _measure(rig: Rig, sizes: Sizes) -> dict[str, float]:
    flows = sizes.idle_flows
    if rig.candidate.peer:
        flows = min(flows, int(_limit() * _FILL / _PEERS_DESCRIPTORS))
    first = max(flows // _FIRST_PART, 2)
    empty = Use.of(rig)
    with _idle_flows(rig, first):
        before = Use.of(rig)
        with _idle_flows(rig, flows - first):
            after = Use.of(rig)
    added = flows - first
    return {
        "idle_flows": flows,
        "idle_flow": (after.own_bytes - before.own_bytes) / added / 1024,
        "idle_flow_fds": (after.descriptors - before.descriptors) / added,
        "idle_base": empty.base_bytes / (1 << 20),
    }


IDLE: Final = Scenario(
    "idle flows",
    (
        Metric("idle_flows", "idle flows held", "", "more"),
        Metric("idle_flow", "memory of an idle flow", "KiB", "less"),
        Metric("idle_flow_fds", "descriptors of an idle flow", "", "less"),
        Metric("idle_base", "memory without flows", "MiB", "less"),
    ),
    _measure,
    once=True,
)
