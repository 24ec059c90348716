"""``gateway bench policy``: what a decision takes, and what rule sets of any size cost."""

from __future__ import annotations

import multiprocessing
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, Final

import yaml

from gateway.config.load import Loaded, parse
from gateway.config.schema import Config
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.lab import lists
from gateway.lab.bench.stalls import longest_stall_s
from gateway.lab.bench.usage import memory_bytes
from gateway.pauses import shorten_pauses
from gateway.plan.build import build_plan
from gateway.plan.host import Feature, HostFacts
from gateway.plan.model import Backend
from gateway.plan.render_nft import render_nft
from gateway.policy.compile import compile_policy
from gateway.policy.engine import Policy
from gateway.rulesets.store import RuleSetStore

#: Told what is being done, and how far it is, from 0 to 1.
Progress = Callable[[str, float], None]

PROCESSES: Final = 2
#: Flows of each case, all different, and how many are decided between two looks at the clock.
_FLOWS: Final = 2000
_BATCH: Final = 10
_ROUNDS: Final = 5
_HOST: Final = HostFacts(features={"ipv6": Feature(True, "")})
_CLIENT: Final = Endpoint("192.168.250.5", 40000)


@dataclass(frozen=True, slots=True)
class Amounts:
    """How large the policy is."""

    rules: int = 1000
    names: int = 1_000_000
    prefixes: int = 500_000


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    title: str
    value: float
    unit: str


@dataclass(frozen=True, slots=True)
class Figures:
    """All that was measured, and of what."""

    amounts: Amounts
    figures: tuple[Figure, ...]

    def to_json(self) -> dict[str, Any]:
        """For scripts."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """For people."""
        of = self.amounts
        yield f"{of.rules:,} rules, {of.names:,} names, {of.prefixes:,} prefixes"
        for figure in self.figures:
            yield f"{figure.title:<56} {figure.value:>8.2f} {figure.unit}"


def run(amounts: Amounts, progress: Progress) -> Figures:
    """Measure. Writes the lists and what is compiled of them into a directory of its own."""
    with tempfile.TemporaryDirectory(prefix="gateway-bench-") as name:
        directory = Path(name)
        progress("writing lists", 0.0)
        lists.write(directory / "names.txt", lists.names(amounts.names))
        lists.write(directory / "prefixes.txt", lists.prefixes(amounts.prefixes))
        loaded = _configuration(directory, amounts)
        progress("loading from text", 0.1)
        from_text_s = _seconds(lambda: RuleSetStore(loaded).load())
        progress("loading what was compiled", 0.5)
        store = RuleSetStore(loaded)
        from_cache_s = _seconds(store.load)
        began = time.perf_counter()
        policy = compile_policy(loaded.config, store.load())
        compile_s = time.perf_counter() - began
        packed = pickle.dumps(policy)
        progress("memory of several processes", 0.6)
        megabytes = _memory_bytes(packed) / 1e6
        progress("a reload", 0.65)
        adopt_s, reload_s = _stalls(directory, amounts, packed)
        progress("decisions", 0.8)
        figures = (
            *_decisions(policy, amounts),
            Figure("rule sets from text", from_text_s, "s"),
            Figure("rule sets from what was compiled", from_cache_s, "s"),
            Figure("rules compiled", compile_s, "s"),
            Figure("policy as it is sent to a worker", len(packed) / 1e6, "MB"),
            Figure(f"memory of it in {PROCESSES} processes together", megabytes, "MB"),
            Figure("longest stall of a worker that is sent it", adopt_s * 1e3, "ms"),
            Figure("longest stall of one process that reloads the prefixes", reload_s * 1e3, "ms"),
        )
    return Figures(amounts, figures)


def _stalls(directory: Path, amounts: Amounts, packed: bytes) -> tuple[float, float]:
    """The longest of a worker that is sent a policy, and of one process that makes it anew."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, directory, amounts, packed)
    process = context.Process(target=_measure_stalls, args=arguments, daemon=True)
    process.start()
    theirs.close()
    try:
        adopt_s, reload_s = ours.recv()
    finally:
        process.kill()
        process.join()
    return adopt_s, reload_s


def _measure_stalls(pipe: Connection, directory: Path, amounts: Amounts, packed: bytes) -> None:
    loaded = _configuration(directory, amounts)
    store = RuleSetStore(loaded)
    store.load()
    shorten_pauses()
    adopt_s = longest_stall_s(lambda: pickle.loads(packed))  # noqa: S301 - our parent's
    lists.write(directory / "prefixes.txt", lists.prefixes(amounts.prefixes, seed=2))
    pipe.send((adopt_s, longest_stall_s(lambda: _reload(loaded.config, store))))
    pipe.poll(None)  # killed here


def _reload(config: Config, store: RuleSetStore) -> None:
    """All that is computed once a list has changed, up to what workers and nftables are sent."""
    policy = compile_policy(config, store.refresh())
    render_nft(build_plan(config, policy, _HOST, Backend.NFTABLES))
    pickle.dumps(policy)


def _configuration(directory: Path, amounts: Amounts) -> Loaded:
    """Rules of several kinds; both sets are asked in the middle, so that most flows get there."""
    rules = [_rule(number) for number in range(amounts.rules - 3)]
    rules.insert(len(rules) // 2, {"rule_set": "prefixes", "to": "direct"})
    rules.insert(len(rules) * 2 // 3, {"rule_set": "names", "to": "direct"})
    data = {
        "lan": {"interfaces": ["eth1"]},
        "state_dir": "state",
        "outbounds": {"home": {"type": "socks5", "server": "203.0.113.5"}},
        "rule_sets": {
            name: {"type": "file", "path": f"{name}.txt"} for name in ("names", "prefixes")
        },
        "rules": [*rules, {"to": "home"}],
    }
    text = yaml.safe_dump(data, sort_keys=False)
    return parse(text, str(directory / "gateway.yaml"), resolve_secret=lambda *_: "")


def _rule(number: int) -> dict[str, Any]:
    kinds: tuple[dict[str, Any], ...] = (
        {"destination": f"10.{number >> 8}.{number & 255}.0/24"},
        {"destination": f"10.{number >> 8}.{number & 255}.128/25", "port": [80, 443]},
        {"source": f"192.168.{number & 127}.0/24", "port": 1000 + number, "protocol": "tcp"},
        {"protocol": "udp", "port": f"{2000 + number}-{2010 + number}"},
        {"domain": f"+.n{number}.example"},
    )
    return {**kinds[number % len(kinds)], "to": "home"}


def _decisions(policy: Policy, amounts: Amounts) -> Iterator[Figure]:
    chance = Random(1)  # noqa: S311
    outside = [str(IPv4Address(chance.randrange(11 << 24, 100 << 24))) for _ in range(_FLOWS)]
    inside = [f"10.0.{5 * number % 250}.{number % 128}" for number in range(_FLOWS)]
    known = [name.removeprefix("+.") for name in lists.names(min(_FLOWS, amounts.names))]
    cases = (
        ("decided by address, port or protocol", [_flow(host, "") for host in inside]),
        ("the large prefixes asked, no name", [_flow(host, "") for host in outside]),
        ("the answer is that a name is needed", [_flow(host, None) for host in outside]),
        ("both large sets asked, a name in the list", list(map(_flow, outside, known))),
        ("both large sets asked, a name in none", [_flow(host, "a.b.test") for host in outside]),
    )
    for title, flows in cases:
        yield Figure(f"decision: {title}", _median_us(policy, flows), "µs, median")


def _flow(host: str, name: str | None) -> FlowFacts:
    return FlowFacts(Protocol.TCP, _CLIENT, Endpoint(host, 443), name=name)


def _median_us(policy: Policy, flows: Sequence[FlowFacts]) -> float:
    """The median over small batches: a busy moment of the machine spoils few of them."""
    decide = policy.decide
    times: list[float] = []
    for _ in range(_ROUNDS):
        for at in range(0, len(flows), _BATCH):
            batch = flows[at : at + _BATCH]
            began = time.perf_counter_ns()
            for facts in batch:
                decide(facts)
            times.append((time.perf_counter_ns() - began) / len(batch) / 1e3)
    return statistics.median(times)


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _memory_bytes(packed: bytes) -> int:
    """What processes take more, all together, once each has the policy and has used it."""
    with _children() as children:
        before = sum(memory_bytes(pid) for pid, _ in children)
        for _, pipe in children:
            pipe.send_bytes(packed)
        for _, pipe in children:
            pipe.recv_bytes()
        return sum(memory_bytes(pid) for pid, _ in children) - before


@contextmanager
def _children() -> Iterator[list[tuple[int, Connection]]]:
    context = multiprocessing.get_context("spawn")
    started = []
    try:
        for _ in range(PROCESSES):
            ours, theirs = context.Pipe()
            process = context.Process(target=_use_policy, args=(theirs,), daemon=True)
            process.start()
            started.append((process, ours))
        for _, pipe in started:
            pipe.recv_bytes()
        yield [(process.pid or 0, pipe) for process, pipe in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def _use_policy(pipe: Connection) -> None:
    """What a worker does with a policy; says when it is ready, and when it has used it."""
    pipe.send_bytes(b"ready")
    policy: Policy = pickle.loads(pipe.recv_bytes())  # noqa: S301 - our parent's
    chance = Random(2)  # noqa: S311
    for name in lists.names(_FLOWS, seed=3):
        host = str(IPv4Address(chance.randrange(1 << 32)))
        policy.decide(_flow(host, name.removeprefix("+.")))
    pipe.send_bytes(b"used")
    pipe.recv_bytes()  # killed here
