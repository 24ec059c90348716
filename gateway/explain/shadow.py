"""Which live flows would go elsewhere under another configuration."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.assembly import Assembly
from gateway.changes import changes
from gateway.control.running import FlowRecord
from gateway.explain.answer import minute_now, neighbour
from gateway.flow import FlowFacts
from gateway.kernel.lookup import look_up
from gateway.plan.egress import Egress


@dataclass(frozen=True, slots=True)
class Rerouted:
    """A live flow whose route would be another. Shown as JSON: do not rename fields."""

    id: int
    protocol: str
    client: str
    destination: str
    name: str
    outbound: str
    rule: str
    would_take: str
    by_rule: str


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """What another configuration would change.

    ``changes``: one sentence for each difference. ``compared``: how many live flows of the
    listener there were; those that the kernel decides alone are not among them.
    """

    changes: tuple[str, ...]
    compared: int
    rerouted: tuple[Rerouted, ...]


def shadow(old: Assembly, fresh: Assembly, flows: Iterable[FlowRecord]) -> ShadowReport:
    """Ask another configuration about the live flows. Blocks: the kernel is asked for facts."""
    decided = [flow for flow in flows if flow.close_reason is None and flow.outbound]
    now = minute_now(fresh)
    rerouted = []
    for flow in decided:
        decision = fresh.policy.settle(_facts(fresh, flow), now)
        if decision.outbound != flow.outbound:
            rerouted.append(
                Rerouted(
                    flow.id,
                    str(flow.protocol),
                    str(flow.client),
                    str(flow.destination),
                    flow.name,
                    flow.outbound,
                    flow.rule,
                    decision.outbound,
                    decision.rule,
                )
            )
    return ShadowReport(changes(old.config, fresh.config), len(decided), tuple(rerouted))


def _facts(fresh: Assembly, flow: FlowRecord) -> FlowFacts:
    """What is known of the flow, and what of it the new rules ask for besides."""
    needs, interface, mac = fresh.policy.needs, flow.interface, None
    if not interface and (needs.interface or needs.mac):
        (answer,) = look_up([Egress("", flow.client.host)])
        interface = "" if answer.own else answer.device
    if needs.mac:
        mac = neighbour(fresh, flow.client.host, interface)
    return FlowFacts(
        flow.protocol,
        flow.client,
        flow.destination,
        interface,
        mac,
        name=flow.name,
        sniffed=flow.sniffed,
    )
