"""``gateway bench reload``: how long a flow waits while a large rule set changes.

One client asks and waits through the gateway, once a millisecond. Beside it, another does the
same past it, by a rule that the kernel decides: what that one has to wait for is the machine's
own doing. The list is compiled, loaded and put in force meanwhile, as whenever it changes on
disk.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from gateway.lab import lists
from gateway.lab.bench.candidates import TARGET, UPSTREAM, Candidate
from gateway.lab.bench.metric import Metric
from gateway.lab.bench.rig import WARM_UP_S, Rig
from gateway.lab.bench.suite import Scenario, Sizes, Suite
from gateway.lab.gateway_process import ENVIRONMENT
from gateway.lab.lab import Lab
from gateway.lab.load import waits
from gateway.lab.load.counters import Counters
from gateway.lab.process import Process

PREFIXES: Final = 500_000
FEW: Final = 1000
#: The host that a rule of addresses alone sends direct.
PAST: Final = "mirror"
#: Said in the log when the changed list is in force, which may take long.
_IN_FORCE: Final = "rule sets changed"
_RELOAD_TIMEOUT_S: Final = 180.0

_LIST: Final = "prefixes.txt"
_runs = itertools.count()


def suite(prefixes: int = PREFIXES) -> Suite:
    """In one process, which loads and carries flows; and with workers beside the one that loads."""
    candidates = tuple(map(_gateway, (1, 2)))
    return Suite(
        "reload",
        candidates,
        (_scenario(prefixes),),
        baseline=candidates[0].name,
        sizes=Sizes(seconds=3.0),
    )


def _gateway(workers: int) -> Candidate:
    def start(lab: Lab) -> Process:
        # The large one comes later: no start waits for it.
        _write(lab, FEW).replace(lab.directory / _LIST)
        rules = (
            {"destination": list(lab.topology.targets[PAST]), "to": "direct"},
            {"rule_set": "large", "to": "reject"},
            {"to": UPSTREAM},
        )
        config = lab.config(*rules)
        config["rule_sets"] = {"large": {"type": "file", "path": str(lab.directory / _LIST)}}
        config["inbound"] = {"workers": workers}
        lab.router.sysctl("net.ipv4.ip_forward", "1")
        return lab.start_gateway(config).process

    return Candidate(f"{workers} {'worker' if workers == 1 else 'workers'}", start)


def _write(lab: Lab, count: int) -> Path:
    """Another list each time; nothing in it is an address of the lab's targets."""
    fresh = lab.directory / f"{_LIST}.new"
    entries = lists.prefixes(count, seed=next(_runs))
    lists.write(fresh, (entry for entry in entries if not entry.startswith("198.")))
    return fresh


def _scenario(prefixes: int) -> Scenario:
    title = "longest wait for an answer"
    loading = f"while {prefixes:,} prefixes change"
    return Scenario(
        title,
        (
            Metric("quiet_longest", f"{title}, at rest", "ms", "less"),
            Metric("reload_longest", f"{title}, {loading}", "ms", "less"),
            Metric("past_longest", f"the same, {loading}, of a flow in the kernel", "ms", "less"),
            Metric("reload_long", f"answers after more than 20 ms, {loading}", "", "less"),
            Metric("past_long", "the same, of a flow in the kernel", "", "less"),
            Metric("reload_s", f"until the changed list of {prefixes:,} is in force", "s", "less"),
        ),
        partial(_measure, prefixes),
    )


def _measure(prefixes: int, rig: Rig, sizes: Sizes) -> dict[str, float]:
    lab, process = rig.lab, rig.process
    assert process is not None
    with _waiting(lab, TARGET) as through, _waiting(lab, PAST) as past:
        quiet, _ = _during(through, past, partial(time.sleep, sizes.seconds))
        fresh, done = _write(lab, prefixes), _times_said(process)

        def change() -> None:
            fresh.replace(lab.directory / _LIST)
            process.wait_until(
                lambda: _times_said(process) > done, "the list to change", _RELOAD_TIMEOUT_S
            )

        began_s = time.monotonic()
        through_reload, past_reload = _during(through, past, change)
        took_s = time.monotonic() - began_s
    return {
        "quiet_longest": quiet["longest_us"] / 1e3,
        "reload_longest": through_reload["longest_us"] / 1e3,
        "past_longest": past_reload["longest_us"] / 1e3,
        "reload_long": through_reload["long"],
        "past_long": past_reload["long"],
        "reload_s": took_s,
    }


def _times_said(process: Process) -> int:
    return sum(_IN_FORCE in line for line in process.log)


def _during(
    through: Counters, past: Counters, work: Callable[[], None]
) -> tuple[dict[str, int], dict[str, int]]:
    """What both clients count while something is done."""
    for counters in (through, past):
        for place in range(len(waits.WAITS)):
            counters.values[place] = 0
    work()
    return dict(through.read()), dict(past.read())


@contextmanager
def _waiting(lab: Lab, target: str) -> Iterator[Counters]:
    path: Path = lab.directory / f"waits{next(_runs)}.counters"
    counters = Counters(path, waits.WAITS, create=True)
    command = [sys.executable, "-m", "gateway.lab.load.waits", str(path)]
    command.append(lab.topology.targets[target].ipv4)
    process = lab.client("desk").start(path.stem, command, ENVIRONMENT)
    try:
        process.wait_until(lambda: counters.read()["answers"] > 0, "the first answer")
        time.sleep(WARM_UP_S)
        yield counters
    finally:
        process.stop()
