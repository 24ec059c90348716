"""The loop guard: whether an outbound's packets would enter our own diversion again.

The kernel is asked (``gateway.kernel.lookup``), and its answer is judged by a pure function.
Run at start, by ``gateway check``, and on every link, address or route event. Call from a
thread without an event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.kernel.lookup import Answer, look_up
from gateway.marks import DIVERTING_TABLES
from gateway.plan.egress import Egress


class Outcome(StrEnum):
    """What the guard found. The values stand in the API: do not rename them."""

    CLEAR = "clear"
    NO_ROUTE = "no-route"
    LOOP = "loop"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Finding:
    """The judgement on one way out; ``route`` is the kernel's answer as text."""

    egress: Egress
    outcome: Outcome
    route: str
    reason: str = ""
    hint: str = ""

    @property
    def ok(self) -> bool:
        """Whether the outbound may be used: a missing route fails flows, but cannot loop."""
        return self.outcome in (Outcome.CLEAR, Outcome.NO_ROUTE)

    @property
    def unannounced(self) -> bool:
        """Whether it is refused for a program on this machine, whose start no event tells."""
        return not self.ok and self.egress.strategy in ("uid", "cgroup")


class _Verdict(NamedTuple):
    outcome: Outcome
    reason: str = ""
    hint: str = ""


_CLEAR: Final = _Verdict(Outcome.CLEAR)


def prove(
    egresses: Iterable[Egress], listener_port: int | None = None, *, own_diverted: bool = False
) -> tuple[Finding, ...]:
    """Ask the kernel about each way out, and judge; in the order given.

    ``own_diverted``: this machine's own traffic is, so that programs here may loop as well.
    """
    ways = tuple(egresses)
    return tuple(
        judge(way, answer, listener_port, own_diverted=own_diverted)
        for way, answer in zip(ways, look_up(ways), strict=True)
    )


def judge(
    egress: Egress, answer: Answer, listener_port: int | None, *, own_diverted: bool = False
) -> Finding:
    """Judge one answer."""
    outcome, reason, hint = (
        _of_own_listener(egress, answer, listener_port)
        or _of_strategy(egress, answer, own_diverted)
        or _of_route(egress, answer)
        or _CLEAR
    )
    return Finding(egress, outcome, str(answer), reason, hint)


def _of_own_listener(egress: Egress, answer: Answer, listener_port: int | None) -> _Verdict | None:
    if not answer.own or listener_port is None or egress.port != listener_port or egress.netns:
        return None
    return _Verdict(
        Outcome.LOOP,
        f"{egress.destination} port {egress.port} is this gateway's own listener",
        "give the upstream or inbound.port another port",
    )


def _of_strategy(egress: Egress, answer: Answer, own_diverted: bool) -> _Verdict | None:
    """What the way itself says of itself, and of what it needs."""
    if egress.problem:
        return _Verdict(Outcome.REFUSED, egress.problem, egress.cure)
    if egress.netns and answer.error == errno.ENOENT:
        # Nobody tells us when it is made: its flows find it, or fail.
        return _Verdict(
            Outcome.NO_ROUTE,
            f"there is no network namespace {egress.netns} now",
            f"ip netns add {egress.netns}, and give it an uplink; it is used once it is there",
        )
    if egress.netns and answer.error == errno.EPERM:
        return _Verdict(
            Outcome.REFUSED,
            f"the network namespace {egress.netns} may not be entered",
            "run as root, or with CAP_SYS_ADMIN",
        )
    if egress.device and egress.device != "lo" and answer.own:
        return _Verdict(
            Outcome.REFUSED,
            f"{egress.destination} is this machine's own: a socket bound to {egress.device}"
            " cannot reach it",
            "use route: mark, without interface, for a server on this machine",
        )
    if own_diverted and egress.uid is not None and answer.users - {egress.uid}:
        others = ", ".join(map(str, sorted(answer.users - {egress.uid})))
        return _Verdict(
            Outcome.REFUSED,
            f"the server on {egress.destination} port {egress.port} runs as user {others}, not"
            f" {egress.uid}: what it sends would be diverted to itself, for ever",
            "name the user that it runs as in `uid:`, or run it as that one",
        )
    return None


def _of_route(egress: Egress, answer: Answer) -> _Verdict | None:
    if answer.table in DIVERTING_TABLES or (answer.local and not answer.own):
        return _Verdict(
            Outcome.LOOP,
            "the kernel would hand these packets to our own listener",
            "another ip rule sends the bypass mark into the diversion: see `ip rule`, or"
            " choose other bits with marks.base",
        )
    if answer.captured:
        # Its flows are refused; a reload is not, which may be what ends this.
        return _Verdict(
            Outcome.REFUSED,
            f"the kernel would send these packets into our own TUN, {answer.device}",
            "give this outbound another `route:`: host_route, device or source",
        )
    if answer.assumed_on_link and answer.device_has_arp:
        return _Verdict(
            Outcome.REFUSED,
            f"no route to {egress.destination} by {egress.device}: the kernel would ask for"
            " it by ARP on the link",
            f"add one, with a metric if need be: ip route add default via GATEWAY dev"
            f" {egress.device} metric 1000",
        )
    if answer.error:
        return _Verdict(
            Outcome.NO_ROUTE,
            f"no route to {egress.destination} now",
            "flows fail until there is one; it is looked up again when links or routes change",
        )
    if egress.uplink and not answer.own and answer.device != egress.uplink:
        return _Verdict(
            Outcome.REFUSED,
            f"the kernel would send these packets by {answer.device}, not by {egress.uplink}",
            "another route or ip rule comes first: see `ip rule` and `ip route show table all`",
        )
    return None
