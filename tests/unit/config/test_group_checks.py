"""Mistakes in groups: each with its place and its cure."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.check import check
from gateway.config.findings import show_path
from gateway.config.groups import ends_of, groups_of, groups_within, stands_for
from gateway.config.load import parse
from gateway.config.schema import Config
from gateway.errors import ConfigError
from gateway.policy.compile import compile_policy
from gateway.policy.lint import lint

SOCKS = {"type": "socks5", "server": "203.0.113.5"}


def config(to: str = "g", **outbounds: dict[str, Any]) -> Config:
    return Config.model_validate(
        {
            "lan": {"interfaces": "eth1"},
            "outbounds": {"home": SOCKS, **outbounds},
            "rules": [{"to": to}],
        }
    )


def group(*members: str, kind: str = "fallback", **more: Any) -> dict[str, Any]:
    return {"type": kind, "members": list(members), **more}


def test_legal() -> None:
    nested = config(
        g=group("inner", "home", "direct", "reject"),
        inner=group("home", "direct", kind="select"),
    )
    assert check(nested, frozenset()) == ()
    assert list(lint(nested, compile_policy(nested, {}))) == []


@pytest.mark.parametrize(
    ("outbounds", "path", "message", "cure"),
    [
        ({"g": group("hom")}, "outbounds.g.members[0]", "unknown outbound", "did you mean home?"),
        ({"g": group()}, "outbounds.g.members", "an empty group", "name the outbounds"),
        ({"g": group("home", "home")}, "outbounds.g.members[1]", "twice", "keep the first"),
        ({"g": group("home", "g")}, "outbounds.g.members[1]", "its own member", "remove it"),
        (
            {"g": group("home", "h"), "h": group("direct", "g")},
            "outbounds.g.members[1]", "leads back to g", "one direction only",
        ),
    ],
)  # fmt: skip
def test_illegal(outbounds: dict[str, Any], path: str, message: str, cure: str) -> None:
    found = check(config(**outbounds), frozenset())
    first = found[0]
    assert show_path(first.path) == path
    assert message in first.message
    assert cure in first.cure


def test_a_name_that_is_kept_is_no_group() -> None:
    (found,) = check(config(reject=group("home")), frozenset())[:1]
    assert "kept for outbounds of type reject" in found.message


@pytest.mark.parametrize(
    ("outbounds", "path", "message"),
    [
        ({"g": group("home")}, "outbounds.g.members", "there is nothing to choose"),
        (
            {"g": group("reject", "home")},
            "outbounds.g.members[1]", "never taken: reject before it never fails",
        ),
        (
            {"g": group("home", "direct"), "h": group("home", "direct")},
            "outbounds.h", "no rule names it",
        ),
    ],
)  # fmt: skip
def test_hardly_meant(outbounds: dict[str, Any], path: str, message: str) -> None:
    legal = config(**outbounds)
    assert check(legal, frozenset()) == ()
    (found,) = lint(legal, compile_policy(legal, {}))
    assert (show_path(found.path), found.message) == (path, message)


def test_every_mistake_of_a_file_with_its_line() -> None:
    text = """\
lan: {interfaces: eth1}
outbounds:
  home: {type: socks5, server: 203.0.113.5}
  a: {type: fallback, members: [homy, b], probe: {every: 0, url: "ftp://x/"}}
  b: {type: url-test, members: a, tolerence: 5}
  c: {type: load-balance, by: colour, members: [home, direct]}
  d: {type: fallback, members: [e, home]}
  e: {type: select, members: [home, d]}
rules: [{to: d}]
"""
    with pytest.raises(ConfigError) as caught:
        parse(text, "g.yaml", resolve_secret=lambda *_: "")
    found = [(each.line, each.path, each.cure) for each in caught.value.problems]
    assert [(line, path) for line, path, _ in found] == [
        (4, "outbounds.a.probe.every"),
        (4, "outbounds.a.probe.url"),
        (5, "outbounds.b.tolerence"),
        (6, "outbounds.c.by"),
        (7, "outbounds.d.members[0]"),
        (8, "outbounds.e.members[1]"),
    ]
    assert all(cure for _, _, cure in found)


@st.composite
def tangles(draw: st.DrawFn) -> Config:
    """Groups whose members are any of each other, or nothing that exists."""
    names = draw(st.lists(st.sampled_from("abcde"), min_size=1, unique=True))
    members = st.lists(st.sampled_from([*"abcde", "home", "direct", "gone"]), max_size=4)
    kinds = st.sampled_from(["select", "fallback", "url-test", "load-balance"])
    return config("direct", **{name: group(*draw(members), kind=draw(kinds)) for name in names})


@given(tangles())
def test_any_tangle_is_judged_and_one_without_findings_has_ends(tangle: Config) -> None:
    found = check(tangle, frozenset())
    for name in groups_of(tangle):
        ends = ends_of(tangle, name)
        assert name in groups_within(tangle, name)
        if not found:
            assert set(ends) <= {"home", "direct"}
            assert ends
            stands_for(tangle, name)
