"""The legacy tables of one family through python-iptables: encode, decode, commit.

Only for ``iptables_worker``: python-iptables must not be used in a process that lives on.
Rules of others are never decoded, moved or deleted: only chains named ``GATEWAY_*`` and the
rules of built-in chains that jump to them are touched.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from typing import Any

from gateway.errors import ApplyError, CapabilityError
from gateway.kernel import iptc_layout, iptc_loading
from gateway.marks import CHAIN_PREFIX
from gateway.plan.addresses import Family
from gateway.plan.xt import TableName, XtChain, XtExtension, XtOption, XtRule, XtTable

_COMMIT_TRIES = 5
#: xtables' name of a protocol, and python-iptables'.
_PROTOCOL_NAMES = {"ipv6-icmp": "icmpv6"}
_NO_PROTOCOL = ("ip", "all", "hopopts")


class Tables:
    """The legacy tables of one family, as python-iptables shows them."""

    def __init__(self, family: Family, names: Iterable[TableName]) -> None:
        try:
            iptc = iptc_loading.load()
        except Exception as error:
            raise CapabilityError(
                f"python-iptables cannot be loaded: {error}",
                hint="apt-get install iptables gcc python3-dev && pip install 'gateway[iptables]'",
            ) from error
        iptc_layout.support_both(iptc.xtables)
        self._iptc = iptc
        self._family = family
        table_class = iptc.Table if family is Family.V4 else iptc.Table6
        self._rule_class = iptc.Rule if family is Family.V4 else iptc.Rule6
        # It looks for chains in every table that it knows, and looking creates a table.
        table_class.ALL = list(names)
        try:
            self._tables = {name: table_class(name, False) for name in names}
        except iptc.IPTCError as error:
            raise CapabilityError(
                f"the kernel has no legacy iptables ({family}): {error}",
                hint="load ip_tables and iptable_mangle, or set inbound.backend: nftables",
            ) from error

    def read(self) -> tuple[XtTable, ...]:
        """What is ours; tables without any chain of ours are left out."""
        found = (self._read_table(name) for name in self._tables)
        return tuple(table for table in found if table.chains)

    def apply(self, wanted: Iterable[XtTable]) -> tuple[tuple[XtTable, ...], bool]:
        """Make what is ours exactly this; returns what it was, and whether that differed.

        Raises ``ApplyError``; the tables that were committed before are then put back.
        """
        chains = {table.name: table for table in wanted}
        before = {name: self._read_table(name) for name in self._tables}
        changed = []
        try:
            for name, old in before.items():
                new = chains.get(name, XtTable(name, ()))
                if not self._is_so(old, new):
                    self._commit(new)
                    changed.append(name)
        except ApplyError:
            for name in reversed(changed):
                self._commit(before[name])
            raise
        return tuple(table for table in before.values() if table.chains), bool(changed)

    def _is_so(self, old: XtTable, new: XtTable) -> bool:
        """Tags say what rules say, so tags are compared; and our jumps must be first."""
        if _tags(old) != _tags(new):
            return False
        return all(
            self._jumps(old.name, chain.hook)[:1] == [(0, chain.name)]
            for chain in old.chains
            if chain.hook
        )

    def _commit(self, wanted: XtTable) -> None:
        table = self._tables[wanted.name]
        for last_try in (*[False] * (_COMMIT_TRIES - 1), True):
            try:
                table.refresh()
                self._rebuild(wanted)
                table.commit()
                break
            except (self._iptc.IPTCError, self._iptc.XTablesError, ValueError) as error:
                # Somebody without the lock was faster; the table is read anew.
                if "temporarily unavailable" in str(error) and not last_try:
                    continue
                raise ApplyError(
                    f"iptables {self._family} table {wanted.name}: {error}",
                    hint="gateway doctor says which iptables features this kernel has",
                ) from error
            finally:
                table.refresh()
        if _tags(self._read_table(wanted.name)) != _tags(wanted):
            raise ApplyError(
                f"iptables {self._family} table {wanted.name}: the kernel did not take all rules",
                hint="compare `gateway plan` with iptables-legacy-save",
            )

    def _rebuild(self, wanted: XtTable) -> None:
        table = self._tables[wanted.name]
        kept = {chain.name for chain in wanted.chains}
        ours = [c.name for c in table.chains if c.name.startswith(CHAIN_PREFIX)]
        for builtin in (c for c in table.chains if table.builtin_chain(c)):
            self._delete_jumps(wanted.name, builtin.name)
        for name in ours:
            table.flush_entries(name)
        for name in ours:
            if name not in kept:
                table.delete_chain(name)
        for name in kept.difference(ours):
            table.create_chain(name)
        for chain in wanted.chains:
            for rule in chain.rules:
                self._iptc.Chain(table, chain.name).append_rule(self._encode(rule))
            if chain.hook:
                self._iptc.Chain(table, chain.hook).insert_rule(self._encode(chain.jump))

    def _entries(self, name: TableName, chain: str) -> Iterator[Any]:
        table = self._tables[name]
        entry = table.first_rule(chain)
        while entry:
            yield entry
            entry = table.next_rule(entry)

    def _jumps(self, name: TableName, builtin: str) -> list[tuple[int, str]]:
        """Position and target of each rule of a built-in chain that leads to a chain of ours."""
        found = []
        for position, entry in enumerate(self._entries(name, builtin)):
            target = (self._tables[name].get_target(entry) or b"").decode()
            if target.startswith(CHAIN_PREFIX):
                found.append((position, target))
        return found

    def _delete_jumps(self, name: TableName, builtin: str) -> None:
        table = self._tables[name]
        for position, _ in reversed(self._jumps(name, builtin)):
            # By number: deleting by content would need the same comment, whatever version made it.
            table._iptc.iptc_delete_num_entry(
                builtin.encode(), ctypes.c_uint(position), table._handle
            )

    def _read_table(self, name: TableName) -> XtTable:
        table = self._tables[name]
        hooks = {
            target: builtin.name
            for builtin in table.chains
            if table.builtin_chain(builtin)
            for _, target in self._jumps(name, builtin.name)
        }
        names = sorted(c.name for c in table.chains if c.name.startswith(CHAIN_PREFIX))
        return XtTable(
            name,
            tuple(
                XtChain(
                    chain,
                    tuple(self._decode(rule) for rule in self._iptc.Chain(table, chain).rules),
                    hooks.get(chain, ""),
                )
                for chain in names
            ),
        )

    def _encode(self, rule: XtRule) -> Any:
        made = self._rule_class()
        if rule.protocol:
            made.protocol = _PROTOCOL_NAMES.get(rule.protocol, rule.protocol)
        if rule.in_interface:
            made.in_interface = rule.in_interface
        if rule.out_interface:
            made.out_interface = rule.out_interface
        if rule.source:
            made.src = rule.source
        if rule.destination:
            made.dst = rule.destination
        for match in rule.matches:
            _set_options(made.create_match(match.name), match.options)
        if rule.tag:
            made.create_match("comment").set_parameter("comment", rule.tag)
        _set_options(made.create_target(rule.target.name, goto=rule.goto), rule.target.options)
        return made

    def _decode(self, rule: Any) -> XtRule:
        matches = [XtExtension(m.name, _options(m)) for m in rule.matches]
        comments = [m for m in matches if m.name == "comment"]
        return XtRule(
            tag=comments[-1].options[0].values[0] if comments else "",
            target=XtExtension(rule.target.name, _options(rule.target)),
            goto=rule.target.goto,
            matches=tuple(m for m in matches if m.name != "comment"),
            protocol="" if rule.protocol in _NO_PROTOCOL else rule.protocol,
            in_interface=rule.in_interface or "",
            out_interface=rule.out_interface or "",
            source=_prefix(rule.src),
            destination=_prefix(rule.dst),
        )


def _set_options(extension: Any, options: Iterable[XtOption]) -> None:
    for option in options:
        values = ["!"] * option.negate + list(option.values)
        extension.set_parameter(option.name, values or None)


def _options(extension: Any) -> tuple[XtOption, ...]:
    return tuple(
        XtOption(name, tuple(v for v in values if v != "!"), negate="!" in values)
        for name, values in extension.get_all_parameters().items()
    )


def _prefix(text: str) -> str:
    """``10.0.0.0/255.0.0.0`` as a prefix; empty where it matches everything."""
    network = ip_network(text)
    return str(network) if network.prefixlen else ""


def _tags(table: XtTable) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(c.name, c.hook): tuple(rule.tag for rule in c.rules) for c in table.chains}
