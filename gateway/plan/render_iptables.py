"""A plan as text for iptables-restore(8) and ipset(8), as a person would load it by hand."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.plan.addresses import Family
from gateway.plan.model import AddressSet, Plan
from gateway.plan.xt import XtExtension, XtRule, XtTable, xt_tables
from gateway.policy.sets.networks import texts

#: ipset(8)'s words for address families.
SET_FAMILY = {Family.V4: "inet", Family.V6: "inet6"}


def render_iptables(plan: Plan, family: Family) -> str:
    """Text for ``iptables-restore --noflush`` (``ip6tables-restore``); empty if there is none.

    Our chains are emptied and filled again, one commit a table. The jumps are added each
    time, so the text is for a machine that does not have them yet.
    """
    return "\n".join("\n".join(_table(table)) + "\n" for table in xt_tables(plan, family))


def removal_arguments(plan: Plan, family: Family) -> Iterator[str]:
    """Arguments of ``iptables`` that take the jumps and chains of this plan away, in order."""
    for table in reversed(xt_tables(plan, family)):
        for chain in table.chains:
            if chain.hook:
                yield f"-t {table.name} -D {chain.hook} {_rule(chain.jump)}"
        for verb in ("-F", "-X"):
            for chain in table.chains:
                yield f"-t {table.name} {verb} {chain.name}"


def render_ipset(plan: Plan) -> str:
    """Text for ``ipset restore -exist``; empty if the plan has no set."""
    return "".join(line + "\n" for s in plan.sets for line in _set(s))


def create_set(address_set: AddressSet) -> str:
    """The line that makes an empty set; its bound is what it has to hold, 65536 at least."""
    timeout = "" if address_set.timeout_s is None else f" timeout {address_set.timeout_s}"
    bound = max(65536, len(address_set.elements))
    family = SET_FAMILY[address_set.family]
    return f"create {address_set.name} hash:net family {family} maxelem {bound}{timeout}"


def _set(address_set: AddressSet) -> Iterator[str]:
    yield create_set(address_set)
    for element in texts(address_set.elements):
        yield f"add {address_set.name} {element}"


def _table(table: XtTable) -> Iterator[str]:
    yield f"*{table.name}"
    for chain in table.chains:
        yield f":{chain.name} - [0:0]"
    for chain in table.chains:
        for rule in chain.rules:
            yield f"-A {chain.name} {_rule(rule)}"
    for chain in table.chains:
        if chain.hook:
            yield f"-I {chain.hook} 1 {_rule(chain.jump)}"
    yield "COMMIT"


def _rule(rule: XtRule) -> str:
    words = []
    for option, value in (
        ("-i", rule.in_interface),
        ("-o", rule.out_interface),
        ("-s", rule.source),
        ("-d", rule.destination),
        ("-p", rule.protocol),
    ):
        if value:
            words += [option, value]
    for match in rule.matches:
        words += ["-m", *_extension(match)]
    words += ["-m", "comment", "--comment", rule.tag]
    words += ["-g" if rule.goto else "-j", *_extension(rule.target)]
    return " ".join(words)


def _extension(extension: XtExtension) -> Iterator[str]:
    yield extension.name
    for option in extension.options:
        if option.negate:
            yield "!"
        yield f"--{option.name}"
        yield from (f'"{value}"' if " " in value else value for value in option.values)
