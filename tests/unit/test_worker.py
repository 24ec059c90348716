"""What the gateway and its workers send one another."""

from __future__ import annotations

import asyncio
import pickle
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.assembly import Assembly
from gateway.config.document import compose
from gateway.config.load import Loaded
from gateway.config.outbounds import BUILT_IN, SelectGroup
from gateway.config.schema import Config
from gateway.groups.standing import Standing
from gateway.kernel.guard import Finding, Outcome
from gateway.plan.build import build_plan
from gateway.plan.egress import Egress
from gateway.plan.host import HostFacts
from gateway.plan.model import Backend
from gateway.policy.compile import compile_policy
from gateway.policy.rule import CompiledRule
from gateway.rulesets.store import RuleSetStore
from gateway.wiring import blueprint
from gateway.worker import pack, read

#: Loads a blueprint as a worker does, and says what came with it.
LOAD = """
import pickle, sys
import gateway.worker
pickle.load(sys.stdin.buffer)
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""

messages = st.recursive(
    st.none() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
)


@given(st.lists(messages), st.integers(1, 50))
def test_messages_arrive_whole_and_in_order_however_they_are_cut(
    sent: list[object], size: int
) -> None:
    async def scenario() -> list[object]:
        stream = asyncio.StreamReader()
        data = b"".join(map(pack, sent))
        for at in range(0, len(data), size):
            stream.feed_data(data[at : at + size])
        stream.feed_eof()
        received = [await read(stream) for _ in sent]
        assert stream.at_eof()
        return received

    assert asyncio.run(scenario()) == sent


def assembly(**home: str) -> Assembly:
    config = Config.model_validate(
        {
            "lan": {"interfaces": ["lan0"]},
            "outbounds": {
                "home": {"type": "socks5", "server": "203.0.113.5", **home},
                "no": {"type": "reject"},
                "vpn": {"type": "direct", "preserve_source": True},
                "auto": {"type": "fallback", "members": ["home", "vpn"]},
            },
            "rules": [
                {"port": 25, "to": "no"},
                {"destination": "198.51.100.0/24", "to": "vpn"},
                {"port": 443, "to": "auto"},
                {"to": "home"},
            ],
        }
    )
    policy, host = compile_policy(config, {}), HostFacts((), (), {})
    plan = build_plan(config, policy, host, Backend.NFTABLES)
    store = RuleSetStore(Loaded(config, compose("rules: []", "gateway.yaml")))
    return Assembly(
        Path("gateway.yaml"),
        config,
        store,
        policy,
        frozenset(),
        policy,
        host,
        "",
        plan,
        {"home": ("203.0.113.5",)},
    )


@pytest.mark.parametrize("outcome", Outcome)
def test_a_worker_loads_no_library_that_only_its_parent_needs(outcome: Outcome) -> None:
    made = assembly()
    egress = Egress("home", "203.0.113.5", made.marks.bypass)
    sent = pickle.dumps(blueprint(made, [Finding(egress, outcome, "")]))
    done = subprocess.run(
        [sys.executable, "-c", LOAD], input=sent, capture_output=True, check=True, timeout=30
    )
    loaded = set(done.stdout.decode().split())
    assert "gateway" in loaded
    assert not loaded & {"aiohttp", "pydantic", "pyroute2", "yaml", "click", "rich"}


@pytest.mark.parametrize(("home", "warm"), [({}, True), ({"pool": "off"}, False)])
def test_connections_are_kept_ready_unless_it_is_turned_off(
    home: dict[str, str], warm: bool
) -> None:
    made = assembly(**home)
    found = Finding(Egress("home", "203.0.113.5", made.marks.bypass), Outcome.CLEAR, "")
    assert blueprint(made, [found]).outbounds["home"].keywords["warm"] is warm


def test_members_are_made_ready_for_what_rules_send_to_their_group() -> None:
    made = assembly()
    found = [Finding(Egress("home", "203.0.113.5", made.marks.bypass), Outcome.CLEAR, "")]
    config = made.config.model_copy(
        update={"rules": tuple(rule for rule in made.config.rules if rule.to != "home")}
    )
    by_group_alone = replace(made, config=config, written=made.written.rewritten(_without_home))
    for each in (made, by_group_alone):
        plan = blueprint(each, found)
        assert plan.outbounds["home"].keywords["warm_udp"] is True
        assert plan.outbounds.keys() == {*BUILT_IN, "home", "no", "vpn"}
        assert plan.groups == {"auto": Standing(("home", "vpn"))}


def _without_home(rules: Iterable[CompiledRule]) -> list[CompiledRule]:
    last = CompiledRule(index=9, text="", outbound="no")
    return [*(rule for rule in rules if rule.outbound != "home"), last]


def test_a_packet_queue_diverts_what_goes_to_a_group() -> None:
    made = assembly()
    outbounds = {
        **made.config.outbounds,
        "plain": SelectGroup(type="select", members=("direct",)),
        "none": SelectGroup(type="select", members=("no",)),
    }
    inbound = made.config.inbound.model_copy(update={"classify": "nfqueue"})
    config = made.config.model_copy(update={"outbounds": outbounds, "inbound": inbound})
    judgement = blueprint(replace(made, config=config), []).judgement
    assert judgement is not None
    answers, marks = judgement.answers, made.marks
    assert [answers[name] for name in ("auto", "plain", "none")] == [
        marks.divert,
        marks.direct,
        marks.refuse,
    ]
