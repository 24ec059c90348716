"""Assertions of a configuration, asked of its policy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from gateway.config.assertions import (
    SOMEWHERE,
    SOURCE_PORT,
    Assertion,
    Target,
    facts_of_device,
    minutes_of,
    target,
)
from gateway.config.findings import Finding
from gateway.config.groups import stands_for
from gateway.config.load import Loaded
from gateway.config.outbounds import RejectOutbound
from gateway.config.schema import Config
from gateway.config.values import Network
from gateway.decision import REJECT, Decision
from gateway.errors import ConfigError
from gateway.flow import Endpoint, FlowFacts
from gateway.policy.demands import week_time
from gateway.policy.engine import Outcome, Policy, Step


def require_assertions(loaded: Loaded, policy: Policy) -> None:
    """Raise ``ConfigError`` with every assertion that fails, and how its flow was decided."""
    problems = tuple(loaded.source.problem(each) for each in failures(loaded.config, policy))
    if problems:
        raise ConfigError(problems)


def failures(config: Config, policy: Policy) -> Iterator[Finding]:
    """One finding for each assertion that fails, with the first flow that shows it."""
    for index, assertion in enumerate(config.assertions):
        for facts, now in _flows(config, policy, assertion):
            decision = policy.settle(facts, now)
            if not _as_expected(config, assertion, decision):
                yield _failure(index, policy, facts, now, decision)
                break


def _as_expected(config: Config, assertion: Assertion, decision: Decision) -> bool:
    if assertion.expect == REJECT:
        return isinstance(stands_for(config, decision.outbound), RejectOutbound)
    return decision.outbound == assertion.expect


def _flows(
    config: Config, policy: Policy, assertion: Assertion
) -> Iterator[tuple[FlowFacts, int | None]]:
    """Every flow that is meant: from each network of the subnet, at each time."""
    wanted = target(assertion.to)
    moments: tuple[int | None, ...] = (None,)
    if policy.needs.time:
        moments = minutes_of(assertion.at) if assertion.at else policy.moments
    for source, now in product(_sources(config, assertion), moments):
        facts = _facts(config, assertion, wanted, source)
        if facts is not None:
            yield facts, now


def _sources(config: Config, assertion: Assertion) -> tuple[str, ...]:
    networks = config.lan.subnets.get(assertion.origin)
    return (assertion.origin,) if networks is None else tuple(map(_first_host, networks))


def _first_host(network: Network) -> str:
    return str(network[1] if network.num_addresses > 1 else network[0])


def _facts(config: Config, assertion: Assertion, wanted: Target, source: str) -> FlowFacts | None:
    """The facts of a flow from that source; None where it cannot go there."""
    version = 6 if ":" in source else 4
    host = wanted.destination.host
    if wanted.by_name:
        host = str(assertion.address or SOMEWHERE[version])
    if (":" in host) != (version == 6):
        return None
    mac, hostname = facts_of_device(config.lan.devices, assertion.device)
    only = config.lan.interfaces[0] if len(config.lan.interfaces) == 1 else ""
    return FlowFacts(
        wanted.protocol,
        Endpoint(source, SOURCE_PORT if wanted.destination.port else 0),
        Endpoint(host, wanted.destination.port),
        interface=assertion.interface or only,
        mac=mac,
        hostname=hostname,
        name=wanted.destination.host if wanted.by_name else "",
        sniffed=assertion.sniffed or "",
    )


def _failure(
    index: int, policy: Policy, facts: FlowFacts, now: int | None, decision: Decision
) -> Finding:
    steps = policy.trace(facts, now)
    flow = f"{facts.source.host} to {facts.name or facts.destination.host}"
    when = "" if now is None else f" at {week_time(now)}"
    tried = "; ".join(filter(None, map(_told, steps)))
    return Finding(
        ("assertions", index, "expect"),
        f"a flow from {flow}{when} goes to {decision.outbound}, by {decision.rule}",
        f"change the rules or the assertion; what was tried: {tried}",
    )


def _told(step: Step) -> str:
    title = step.rule.text.partition(" ")[0]
    if step.outcome is Outcome.MISSED:
        return f"{title}: {step.key} is {step.seen}"
    return f"{title}: {step.outcome}"
