"""The nftables backend: one table ``inet gateway``, replaced as a whole in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network, summarize_address_range
from typing import Any

from gateway.errors import ApplyError, CapabilityError
from gateway.kernel import libnftables
from gateway.kernel.step import Step
from gateway.marks import NFT_TABLE, TAG_PREFIX
from gateway.plan.model import AddressSet, Family, Network, Plan
from gateway.plan.render_nft import render_nft
from gateway.plan.snapshot import ChainKey, expected_chains

_TABLE = f"inet {NFT_TABLE}"
#: ``delete`` of a table that is not there fails, so it is made first (nft(8), "destroy" is newer).
_DELETE = f"table {_TABLE} {{\n}}\ndelete table {_TABLE}\n"
_FAMILIES = {"ipv4_addr": Family.V4, "ipv6_addr": Family.V6}

Chains = dict[ChainKey, tuple[str, ...]]


def apply(plan: Plan) -> Step | None:
    """Make the table as planned; None where it is so already. Raises ``ApplyError``."""
    chains, sets = read()
    if chains == expected_chains(plan) and _lasting(sets.values()) == _lasting(plan.sets):
        return None
    return _replace(render_nft(plan), f"nftables: table {_TABLE} loaded")


def remove() -> Step | None:
    """Delete the table; None where there is none. Raises ``ApplyError``."""
    if not installed():
        return None
    return _replace(_DELETE, f"nftables: table {_TABLE} deleted")


def installed() -> bool:
    """Whether the table is there; False on a machine without nftables."""
    try:
        tables = libnftables.run("list tables inet")
    except (CapabilityError, ApplyError):
        # No library, or no nf_tables in the kernel: nothing can be there.
        return False
    return f"table {_TABLE}" in tables.splitlines()


def read() -> tuple[Chains, dict[str, AddressSet]]:
    """The tags of each chain's rules, and the sets with what they hold now."""
    if not installed():
        return {}, {}
    tags: dict[str, list[str]] = {}
    sets = {}
    for item in libnftables.query(f"list table {_TABLE}"):
        match item:
            case {"chain": {"name": name}}:
                tags.setdefault(name, [])
            case {"rule": {"chain": name, **rest}}:
                comment = str(rest.get("comment", ""))
                tags[name].append(comment if comment.startswith(TAG_PREFIX) else "")
            case {"set": found}:
                sets[found["name"]] = _address_set(found)
    chains = {ChainKey(NFT_TABLE, name, "inet"): tuple(rules) for name, rules in tags.items()}
    return chains, sets


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


def _replace(commands: str, what: str) -> Step:
    before = libnftables.run(f"list table {_TABLE}") if installed() else ""
    libnftables.run(commands)
    return Step(what, lambda: libnftables.run(_DELETE + before))


def _lasting(sets: Iterable[AddressSet]) -> dict[str, frozenset[Network] | None]:
    """What sets must hold to be equal; those that expire change by themselves."""
    return {s.name: None if s.timeout_s else frozenset(s.elements) for s in sets}


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
