"""Prefixes in rules: one stands in the rule itself, more go to a set of the kernel."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from hashlib import blake2s
from typing import Literal

from gateway.marks import SET_PREFIX
from gateway.plan.addresses import Family, Network
from gateway.plan.matches import Addresses, InSet, Match
from gateway.plan.model import AddressSet
from gateway.policy.sets.networks import CompactNetworks

Side = Literal["source", "destination"]

_FAMILIES = {family.version: family for family in Family}


class AddressSets:
    """The sets that rules refer to, each once, in the order in which they were asked for."""

    def __init__(self) -> None:
        self._sets: dict[str, AddressSet] = {}

    @property
    def all(self) -> tuple[AddressSet, ...]:
        """Every set so far."""
        return tuple(self._sets.values())

    def match(self, side: Side, prefixes: Sequence[Network]) -> tuple[Match, ...]:
        """The match for prefixes of one family; none at all where they are the whole family."""
        if not prefixes or prefixes[0].prefixlen == 0:
            return ()
        if len(prefixes) == 1:
            return (Addresses(side, tuple(prefixes)),)
        return (self.set_match(side, tuple(prefixes)),)

    def set_match(self, side: Side, prefixes: Collection[Network]) -> InSet:
        """The match for at least one prefix, by a set whatever their number."""
        family = _FAMILIES[next(iter(prefixes)).version]
        name = set_name(family, prefixes)
        if name not in self._sets:
            self._sets[name] = AddressSet(name, family, prefixes)
        return InSet(side, name)


def set_name(family: Family, prefixes: Collection[Network]) -> str:
    """The name of the set with these prefixes, all of one family.

    It is a digest of the content: a changed list is a new set, filled before any rule refers
    to it, and a list that stays is not loaded again.
    """
    if isinstance(prefixes, CompactNetworks):
        content = prefixes.packed()
    else:
        content = b"".join(
            prefix.network_address.packed + bytes((prefix.prefixlen,)) for prefix in prefixes
        )
    digest = blake2s(content, digest_size=8).hexdigest()
    return f"{SET_PREFIX}v{family.version}_{digest}"


def of_family(networks: Iterable[Network], family: Family) -> tuple[Network, ...]:
    """The members of one family, in order."""
    return tuple(network for network in networks if network.version == family.version)


def by_family(
    networks: Iterable[Network], families: Iterable[Family]
) -> dict[Family, tuple[Network, ...]]:
    """The members of each family that has some."""
    its = tuple(networks)
    return {f: members for f in families if (members := of_family(its, f))}
