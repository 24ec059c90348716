"""The nftables backend: one table ``inet gateway``, whose chains change in one transaction."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any

from gateway.errors import ApplyError, CapabilityError
from gateway.kernel import libnftables
from gateway.kernel.step import Step
from gateway.marks import NFT_TABLE, TAG_PREFIX
from gateway.plan.addresses import Family, Network
from gateway.plan.model import AddressSet, Plan
from gateway.plan.render_nft import REMOVE, render_chains, render_set
from gateway.plan.snapshot import ChainKey, expected_chains

_TABLE = f"inet {NFT_TABLE}"
_FAMILIES = {"ipv4_addr": Family.V4, "ipv6_addr": Family.V6}

#: At the end of a rule, our tag.
_COMMENT = re.compile(rf'comment "({TAG_PREFIX}[^"]*)"$')

Chains = dict[ChainKey, tuple[str, ...]]


def apply(plan: Plan) -> Step | None:
    """Make chains and sets as planned; None where they are so already. Raises ``ApplyError``.

    A set's name tells what it holds (``plan.address_sets``), so what is there already is not
    read, and not loaded again; new sets come first, and then all chains in one transaction.
    Sets that the plan does not want stay, for ``drop_sets``.
    """
    chains, names = _read_names()
    missing = [wanted for wanted in plan.sets if wanted.name not in names]
    if chains == expected_chains(plan) and not missing:
        return None
    before = _listed()
    added: list[str] = []

    def undo() -> None:
        if not before:
            libnftables.run(REMOVE)
            return
        sets = "".join(f"delete set {_TABLE} {name}\n" for name in added)
        libnftables.run(f"{_without_chains()}{before}{sets}")

    try:
        for wanted in missing:
            libnftables.run(render_set(wanted))
            added.append(wanted.name)
        libnftables.run(f"{_without_chains()}{render_chains(plan)}")
    except ApplyError:
        if added:
            undo()
        raise
    return Step(f"nftables: table {_TABLE} loaded", undo)


def drop_sets(kept: Iterable[str]) -> list[str]:
    """Delete all other sets, which no chain names any more. Raises ``ApplyError``."""
    _, names = _read_names()
    unwanted = sorted(names - set(kept))
    if unwanted:
        libnftables.run("".join(f"delete set {_TABLE} {name}\n" for name in unwanted))
    return unwanted


def remove() -> Step | None:
    """Delete the table; None where there is none. Raises ``ApplyError``."""
    if not installed():
        return None
    before = libnftables.run(f"list table {_TABLE}")
    libnftables.run(REMOVE)
    return Step(f"nftables: table {_TABLE} deleted", lambda: libnftables.run(REMOVE + before))


def installed() -> bool:
    """Whether the table is there; False on a machine without nftables."""
    return bool(_listed())


def read() -> tuple[Chains, dict[str, AddressSet]]:
    """The tags of each chain's rules, and the sets with what they hold now."""
    chains, names = _read_names()
    listed = libnftables.query(f"list table {_TABLE}") if names else []
    found = (item["set"] for item in listed if "set" in item)
    return chains, {each["name"]: _address_set(each) for each in found}


def read_chains() -> Chains:
    """The tags of each chain's rules."""
    chains, _ = _read_names()
    return chains


def _read_names() -> tuple[Chains, set[str]]:
    """The tags of each chain's rules, and the names of the sets: quick, however large they are."""
    tags: dict[str, list[str]] = {}
    names = set()
    chain = ""
    for line in _listed().splitlines():
        match line.split():
            case ["chain", chain, "{"]:
                tags[chain] = []
            case ["set", name, "{"]:
                names.add(name)
                chain = ""
            case [first, *_] if chain and first not in ("type", "}"):
                tag = _COMMENT.search(line)
                tags[chain].append(tag[1] if tag else "")
    return {ChainKey(NFT_TABLE, name, "inet"): tuple(rules) for name, rules in tags.items()}, names


def _listed() -> str:
    """The table as text, without what its sets hold; empty where there is none.

    By way of all tables of the family: asked for one table, or even for the names of all, nft
    (1.0.6) reads every element of every set.
    """
    try:
        text = libnftables.run("list ruleset inet", terse=True)
    except (CapabilityError, ApplyError):
        # No library, or no nf_tables in the kernel: nothing can be there.
        return ""
    start = text.find(f"table {_TABLE} {{\n")
    return text[start : text.index("\n}", start) + 3] if start >= 0 else ""


def _without_chains() -> str:
    """Commands that delete every chain that is there now."""
    chains, _ = _read_names()
    deletions = "".join(f"delete chain {_TABLE} {key.chain}\n" for key in chains)
    return f"table {_TABLE} {{\n}}\nflush table {_TABLE}\n{deletions}"


def refresh(sets: Iterable[AddressSet]) -> None:
    """Restart the time-outs of the sets' elements, in one transaction. Raises ``ApplyError``."""
    commands = []
    for wanted in sets:
        elements = ", ".join(str(element) for element in wanted.elements)
        # Adding an element that is there would leave its expiry as it was.
        commands += [
            f"flush set {_TABLE} {wanted.name}\n",
            f"add element {_TABLE} {wanted.name} {{ {elements} }}\n",
        ]
    libnftables.run("".join(commands))


def _address_set(found: dict[str, Any]) -> AddressSet:
    elements: list[Network] = []
    for element in found.get("elem", ()):
        elements += _networks(element)
    return AddressSet(
        found["name"], _FAMILIES[found["type"]], tuple(elements), found.get("timeout")
    )


def _networks(element: Any) -> list[Network]:
    """An element of libnftables-json(5): an address, a prefix, a range, or one with an expiry."""
    match element:
        case {"elem": {"val": inner}}:
            return _networks(inner)
        case {"prefix": {"addr": address, "len": length}}:
            return [ip_network(f"{address}/{length}")]
        case {"range": [first, last]}:
            low, high = ip_address(first), ip_address(last)
            return list(summarize_address_range(low, high))
        case _:
            return [ip_network(element)]
