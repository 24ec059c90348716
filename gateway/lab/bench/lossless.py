"""The highest rate of datagrams of which none is lost, and what a part of another's takes.

The second scenario of a round offers every candidate a part of what the best of the peers
carried without loss in the first.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import Rig
from gateway.lab.bench.senders import sending
from gateway.lab.bench.suite import Scenario, Sizes
from gateway.lab.process import LabError

#: Datagrams a second: where the search begins, and below which it gives up.
FIRST: Final = 10_000
LEAST: Final = 500
#: From one rate to the next.
STEP: Final = 1.5
#: Of the rate found, what is offered to all.
PART: Final = 0.6
#: A sender that manages less of what it was asked for is itself what limits.
MANAGED: Final = 0.9
#: A rate may lose something so often before it is one that loses: others use the machine, too.
TRIES: Final = 2


def scenarios(peers: tuple[str, ...]) -> tuple[Scenario, Scenario]:
    """Both, for candidates of which those named are the peers."""
    found: dict[str, float] = {}
    part = f"{PART * 100:.0f} % of a peer's highest rate"
    return (
        Scenario(
            "highest rate without loss",
            (Metric("lossless_rate", "highest rate without loss", "1000/s", "more"),),
            partial(_measure_highest, found),
        ),
        Scenario(
            part,
            (
                Metric("part_rate", f"{part}: offered", "1000/s", "more"),
                Metric("part_arrived", f"{part}: arrived", "%", "more"),
            ),
            partial(_measure_part, found, peers),
        ),
    )


def _measure_highest(found: dict[str, float], rig: Rig, sizes: Sizes) -> dict[str, float]:
    name = rig.candidate.name
    found.pop(name, None)
    found[name] = _highest(rig, sizes.seconds)
    return {"lossless_rate": found[name] / 1e3}


def _measure_part(
    found: dict[str, float], peers: tuple[str, ...], rig: Rig, sizes: Sizes
) -> dict[str, float]:
    rates = [found[peer] for peer in peers if peer in found]
    if not rates:
        raise LabError("no peer's highest rate is known", "measure that scenario with it")
    offered, lost = _offer(rig, PART * max(rates), sizes.seconds)
    return {"part_rate": offered / 1e3, "part_arrived": 100 * (1 - lost)}


def _highest(rig: Rig, seconds: float) -> float:
    """Rates that rise until something is lost, then one between the last two. 0: none."""
    rate, best, least_bad = float(FIRST), 0.0, 0.0
    while rate >= LEAST:
        offered = _without_loss(rig, rate, seconds)
        if offered is None:
            least_bad = rate
            if best:
                break
            rate /= STEP
            continue
        best = offered
        if least_bad or offered < MANAGED * rate:
            break
        rate *= STEP
    if best and least_bad:
        best = _without_loss(rig, (best * least_bad) ** 0.5, seconds) or best
    return best


def _without_loss(rig: Rig, rate: float, seconds: float) -> float | None:
    """The rate that was offered; None where some of it was lost each time."""
    for _ in range(TRIES):
        offered, lost = _offer(rig, rate, seconds)
        if not lost:
            return offered
    return None


def _offer(rig: Rig, rate: float, seconds: float) -> tuple[float, float]:
    """What was offered (datagrams a second), and the part of it that was lost."""
    with sending(rig, "steady", round(rate)) as sender:
        first, last = sender.window(seconds, warm=2)
        sender.stop()
        end = sender.settle()
    offered = (last.sent - first.sent) / (last.time_s - first.time_s)
    return offered, max(0, end.sent - end.arrived) / end.sent
