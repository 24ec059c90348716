"""The only code that changes the kernel: makes a plan so, and takes all that is ours away.

Order up: settings, sets, routes and ip rules, chains last, so that no packet is diverted to
where nothing takes it. What the plan does not want goes after that, in the reverse order.
Every change carries its inverse; an error midway takes this call's changes back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from gateway.errors import ApplyError, GatewayError
from gateway.kernel import (
    conntrack,
    deadman,
    host_firewall,
    ipset,
    iptables,
    nftables,
    routes,
    sysctl,
)
from gateway.kernel.privilege import require_net_admin
from gateway.kernel.step import Step, Steps
from gateway.kernel.sysctl import SysctlJournal
from gateway.marks import TAG_PREFIX
from gateway.plan.model import AddressSet, Backend, IpRule, Plan, Route, Sysctl
from gateway.plan.snapshot import Snapshot

_Entry = TypeVar("_Entry", IpRule, Route)
_REDIRECT = re.compile(rf"{TAG_PREFIX}redirect-([0-9]+):")


@dataclass(frozen=True, slots=True)
class Report:
    """What a call changed, in order (empty where all was so already), and what to know of it."""

    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Applier:
    """Applies plans to the current network namespace.

    ``run_dir`` keeps the previous values of sysctls; all else is found by its tag. The
    methods block for up to seconds: call them from a thread that runs no event loop.
    """

    def __init__(self, run_dir: Path) -> None:
        self._journal = SysctlJournal(run_dir)
        self._redirected: frozenset[int] = frozenset()

    def apply(self, plan: Plan, spare: Plan | None = None) -> Report:
        """Make what is ours exactly this plan, whatever of ours was there before.

        Only ip rules and routes of ``spare`` that are there stay as well: sockets may still
        rely on them.

        Raises ``ApplyError`` with the machine as it was before the call (what could not be
        put back is in its notes), ``CapabilityError`` without the privilege.
        """
        require_net_admin()
        made = Steps()
        try:
            for step in self._install(plan):
                made.record(step)
            for part in self._withdrawals(plan, spare):
                for step in part:
                    made.record(step)
            deadman.refresh(plan)
        except BaseException as error:
            # An interrupt too must not leave half a plan behind.
            failures = made.revert()
            if not isinstance(error, GatewayError | OSError):
                raise
            hint = error.hint if isinstance(error, GatewayError) else ""
            failed = ApplyError(f"nothing was changed: {error}", hint)
            for failure in failures:
                failed.add_note(f"could not be put back: {failure}")
            raise failed from error
        dropped, left = _drop_sets(plan)
        warnings = (*host_firewall.warnings(plan.accept_input, plan.accept_forward), *left)
        return Report((*made.descriptions, *dropped), warnings)

    def remove(self) -> Report:
        """Take away all that is ours: of any run, of either backend.

        Flows that were redirected stay so; ``forget_redirected``, once nobody serves them any
        more. Goes on after a failure. Raises ``ApplyError`` that names all that is left.
        """
        require_net_admin()
        made = Steps()
        failures = []
        try:
            self._redirected |= _redirect_ports()
        except GatewayError as error:
            failures.append(str(error))
        for part in self._withdrawals(None):
            try:
                for step in part:
                    made.record(step)
            except (GatewayError, OSError) as error:
                failures.append(str(error))
        if failures:
            raise ApplyError(
                f"not all could be removed: {'; '.join(failures)}",
                hint="run `gateway down` again, or reboot: none of it is permanent",
            )
        return Report(made.descriptions)

    def forget_redirected(self) -> Report:
        """Have the kernel forget the flows that what ``remove`` took away had redirected.

        Raises ``ApplyError``.
        """
        try:
            count = conntrack.forget_redirected(self._redirected)
        except OSError as error:
            raise ApplyError(f"redirected flows are still tracked: {error.strerror}") from error
        return Report((f"{count} redirected flows forgotten",) if count else ())

    def snapshot(self, backend: Backend) -> Snapshot:
        """What is installed of ours, as this backend shows it."""
        require_net_admin()
        if backend is Backend.NFTABLES:
            chains, sets = nftables.read()
        else:
            chains, sets = iptables.read(), ipset.read()
        routing = routes.read()
        return Snapshot(
            chains=chains,
            sets={name: frozenset(found.elements) for name, found in sets.items()},
            ip_rules=routing.ip_rules,
            routes=routing.routes,
            sysctls=sysctl.read_matching(sysctl.PLANNED),
            restore=self._journal.previous(),
        )

    def _install(self, plan: Plan) -> Iterator[Step | None]:
        """Add and change; yields each change once it is made."""
        for setting in plan.sysctls:
            yield self._set(setting)
        if plan.backend is Backend.IPTABLES:
            yield from _put_sets(plan.sets)
        installed = routes.read()
        yield from _add(plan.routes, installed.routes)
        yield from _add(plan.ip_rules, installed.ip_rules)
        yield from host_firewall.apply(plan.accept_input, plan.accept_forward)
        yield nftables.apply(plan) if plan.backend is Backend.NFTABLES else iptables.apply(plan)

    def _withdrawals(
        self, kept: Plan | None, spare: Plan | None = None
    ) -> tuple[Iterator[Step | None], ...]:
        """Take away what ``kept`` does not want; each part can fail without the others."""
        return (
            _withdraw_chains(kept),
            *(() if kept else (host_firewall.apply(()), _withdraw_sets())),
            _withdraw_routing(tuple(plan for plan in (kept, spare) if plan)),
            self._withdraw_sysctls(kept),
        )

    def _set(self, setting: Sysctl) -> Step | None:
        before = sysctl.read(setting.key)
        known = setting.key in self._journal.previous()
        if not self._journal.set(setting):
            return None

        def undo() -> None:
            if known and before is not None:
                self._journal.set(Sysctl(setting.key, before, setting.reason))
            else:
                self._journal.restore(setting.key)

        return Step(f"sysctl {setting.key}={setting.value}", undo)

    def _withdraw_sysctls(self, kept: Plan | None) -> Iterator[Step]:
        wanted = {setting.key for setting in kept.sysctls} if kept else set()
        for key in reversed(self._journal.previous()):
            if key not in wanted:
                ours = Sysctl(key, sysctl.read(key) or "", "taken back")
                if self._journal.restore(key):
                    yield Step(f"sysctl {key} restored", partial(self._journal.set, ours))


def _add(wanted: tuple[_Entry, ...], installed: frozenset[_Entry]) -> Iterator[Step]:
    for entry in wanted:
        if entry in installed:
            continue
        before = _in_place_of(entry, installed)
        if isinstance(entry, Route) and before is not None:
            routes.replace(entry)
            yield Step(routes.describe(entry, "replace"), partial(routes.replace, before))
        else:
            routes.add([entry])
            yield Step(routes.describe(entry, "add"), partial(routes.remove, [entry]))


def _in_place_of(entry: IpRule | Route, installed: Iterable[IpRule | Route]) -> Route | None:
    """The route of ours that the kernel would not have beside this one."""
    for old in installed:
        if isinstance(entry, Route) and isinstance(old, Route) and entry.place == old.place:
            return old
    return None


def _put_sets(wanted: tuple[AddressSet, ...]) -> Iterator[Step]:
    """The sets that are not there; a set's name tells what it holds."""
    installed = ipset.names()
    for address_set in wanted:
        if address_set.name not in installed:
            ipset.create(address_set)
            yield Step(f"set {address_set.name} filled", partial(ipset.destroy, [address_set.name]))


def _redirect_ports() -> frozenset[int]:
    """Where installed rules of ours redirect flows to, by their tags."""
    chains = {**nftables.read_chains(), **iptables.read()}
    tags = (tag for found in chains.values() for tag in found)
    return frozenset(int(found[1]) for found in map(_REDIRECT.match, tags) if found)


def _withdraw_chains(kept: Plan | None) -> Iterator[Step | None]:
    if kept is None or kept.backend is not Backend.NFTABLES:
        yield nftables.remove()
    if kept is None or kept.backend is not Backend.IPTABLES:
        yield iptables.remove()


def _withdraw_sets() -> Iterator[Step]:
    for name in sorted(ipset.names()):
        ipset.destroy([name])
        yield Step(f"set {name} destroyed", lambda: None)


def _drop_sets(plan: Plan) -> tuple[list[str], list[str]]:
    """What no chain refers to any more: the sets that went, and what kept others from going.

    Once the plan is in force, since to take a change back takes the old sets.
    """
    kept = {address_set.name for address_set in plan.sets}
    dropped: list[str] = []
    try:
        if plan.backend is Backend.NFTABLES:
            dropped += nftables.drop_sets(kept)
            kept = set()
        for name in sorted(ipset.names() - kept):
            ipset.destroy([name])
            dropped.append(name)
    except ApplyError as error:
        return dropped, [f"a set that is not needed any more is left: {error}"]
    return [f"set {name} destroyed" for name in dropped], []


def _withdraw_routing(kept: tuple[Plan, ...]) -> Iterator[Step]:
    installed = routes.read()
    rules = {rule for plan in kept for rule in plan.ip_rules}
    paths = {route for plan in kept for route in plan.routes}
    unwanted: list[IpRule | Route] = [
        *sorted(installed.ip_rules - rules, key=repr),
        *sorted(installed.routes - paths, key=repr),
    ]
    for entry in unwanted:
        routes.remove([entry])
        yield Step(routes.describe(entry, "del"), partial(routes.add, [entry]))
