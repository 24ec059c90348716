"""A running gateway: brings everything up in order, keeps it true, takes it down in order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal

from gateway import logs
from gateway.assembly import (
    Assembly,
    assemble,
    findings,
    programs_moved,
    reassemble,
    require_apart,
    require_loop_free,
    require_reloadable,
    with_fresh_sets,
)
from gateway.blueprint import GUARDED, Blueprint, Safety
from gateway.changes import changes
from gateway.control.api import ControlServer
from gateway.control.health import outbounds_health, summary, warn_of_lookups, warn_of_refused
from gateway.control.lock import run_lock
from gateway.control.running import FlowRecord, Health, PlanReport, ReloadReport
from gateway.dataplane import require_free
from gateway.errands import connector
from gateway.errors import GatewayError
from gateway.exchange import Connect
from gateway.explain.answer import Explanation, explain, question
from gateway.explain.shadow import ShadowReport, shadow
from gateway.groups.report import GroupRecord
from gateway.keeper import GroupKeeper, choices_of
from gateway.kernel import limits, reactor
from gateway.kernel.guard import Finding
from gateway.kernel.watch import watch
from gateway.kernel_state import KernelState
from gateway.lists import ListKeeper
from gateway.pauses import shorten_pauses
from gateway.plan.diff import diff
from gateway.plan.render import render
from gateway.plane import Plane
from gateway.signals import set_by
from gateway.version import VERSION
from gateway.wiring import blueprint
from gateway.workers import data_plane

log = logging.getLogger(__name__)

#: The dead-man set's elements live five times as long as this (seconds).
REFRESH_S: Final = 1.0
#: How often all is looked at without an event (seconds): iptables has none, nor have names.
RECONCILE_S: Final = 300.0
PROGRAMS_S: Final = 5.0  # how often programs of this machine are looked at
#: After a change of the network that could not be adopted (seconds); twice as long each time.
FIRST_RETRY_S: Final = 1.0
#: How often the lists of rule sets are looked at, and whether one should be fetched (seconds).
LISTS_S: Final = 2.0
#: How often the workers are asked which outbounds have turned out to carry no UDP (seconds).
UDP_S: Final = 1.0


def run(path: Path, run_dir: Path) -> None:
    """Run in the foreground until SIGTERM or SIGINT; SIGHUP reloads.

    Raises ``GatewayError`` where it cannot start; nothing is left behind then.
    """
    reactor.run(Gateway(path, run_dir).serve())


class Gateway:
    """One gateway, from start to stop. Implements ``gateway.control.running.Running``."""

    def __init__(self, path: Path, run_dir: Path, safety: Safety = GUARDED) -> None:
        self._path = path
        self._run_dir = run_dir
        self._safety = safety
        self._kernel = KernelState(run_dir)
        self._state: Literal["starting", "running", "stopping"] = "starting"
        self._started = time.time()
        self._stop = asyncio.Event()
        self._hang_up = asyncio.Event()
        self._changing = asyncio.Lock()
        self._lists = ListKeeper()
        self._unable: frozenset[str] = frozenset()
        # Set by ``serve`` before anything may ask for them.
        self._keeper: GroupKeeper
        self._assembly: Assembly
        self._found: tuple[Finding, ...]
        self._plane: Plane
        self._workers: int

    # --- life ------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Come up, serve until told to stop, go down."""
        told = {
            signal.SIGTERM: self._stop,
            signal.SIGINT: self._stop,
            signal.SIGHUP: self._hang_up,
        }
        with set_by(told), run_lock(self._run_dir):
            self._assembly = await asyncio.to_thread(assemble, self._path)
            self._found = await asyncio.to_thread(findings, self._assembly)
            self._keeper = GroupKeeper(choices_of(self._assembly.config, self._path))
            require_loop_free(self._found)
            require_apart(self._assembly)
            logs.configure(self._assembly.config.log.level, self._assembly.config.log.format)
            warn_of_lookups(self._assembly.lookups)
            limits.raise_descriptor_limit()
            if self._stop.is_set():
                return
            async with self._data_plane(), self._control(), self._kernel_state():
                await self._serve()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(watch(self._network_changed), name="network watch"),
                tasks.create_task(self._every(REFRESH_S, self._refresh), name="dead-man"),
                tasks.create_task(self._every(RECONCILE_S, self._adopt), name="reconcile"),
                tasks.create_task(self._every(PROGRAMS_S, self._watch_programs), name="programs"),
                tasks.create_task(self._every(LISTS_S, self._reread_lists), name="lists"),
                tasks.create_task(self._every(LISTS_S, self._fetch_lists), name="fetching"),
                tasks.create_task(self._every(UDP_S, self._watch_udp), name="udp"),
                tasks.create_task(self._plane.run(), name="data plane"),
                tasks.create_task(
                    self._keeper.run(self._plane, lambda: self._assembly.config, self._connector),
                    name="groups",
                ),
                tasks.create_task(self._reload_on_hang_up(), name="reload"),
            ]
            if self._assembly.foreseen:
                await self._attempt(self._adopt)  # what was foreseen stands in the kernel now
            shorten_pauses()
            self._state = "running"
            log.info("ready", extra=logs.fields(**summary(self._assembly)))
            await self._stop.wait()
            self._state = "stopping"
            self._assembly.store.close()
            # Not before a change that is under way is done: its thread cannot be called back,
            # and would put rules in place that nobody removes.
            async with self._changing:
                for task in running:
                    task.cancel()

    async def _keep_device(self, plan: Blueprint) -> None:
        """The TUN, where there is one: nobody can read it, nor route into it, before."""
        wanted = plan.listen_on.tun
        if wanted is None:
            return
        if await self._kernel.keep_device(wanted, self._workers):
            await self._plane.attach(self._kernel.queues)

    async def _let_device_go(self) -> None:
        if self._kernel.queues:
            await self._plane.attach(())
            self._kernel.let_device_go()

    @asynccontextmanager
    async def _data_plane(self) -> AsyncIterator[None]:
        plan = self._blueprint(self._assembly, self._found)
        require_free(plan.listen_on)
        self._workers = self._assembly.workers  # until we end, whatever a reload says
        self._plane = data_plane(plan, self._workers)
        await self._plane.start()
        try:
            await self._keep_device(plan)
            await self._plane.listen(plan)
            yield
        finally:
            await self._plane.close()
            self._kernel.let_device_go()
            # Not before the clients have heard of the end of what was redirected.
            await self._kernel.forget_redirected()

    @asynccontextmanager
    async def _control(self) -> AsyncIterator[None]:
        server = ControlServer(self, self._run_dir)
        await server.start()
        try:
            yield
        finally:
            await server.stop()

    @asynccontextmanager
    async def _kernel_state(self) -> AsyncIterator[None]:
        """Last up, first down: no packet is diverted while nobody listens."""
        await self._kernel.apply(self._assembly.plan)
        try:
            yield
        finally:
            await self._kernel.remove()
            log.info("stopped: rules, routes and settings are as before")

    # --- keeping it true -------------------------------------------------------------------

    async def _every(self, period_s: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(period_s)
            await self._attempt(work)

    async def _attempt(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Do what may fail for the machine's reasons; whether it did not."""
        try:
            await work()
        except GatewayError as error:
            log.warning("%s", error, extra=logs.fields(hint=error.hint))
        except OSError as error:
            # No descriptor, no memory, no process: it must not end us and all flows.
            log.warning("not done, and tried again later: %s", error)
        else:
            return True
        return False

    async def _refresh(self) -> None:
        # Beside a change, not after it: a slow one must not let the kernel take us for dead.
        await self._kernel.refresh(self._assembly.plan)

    async def _watch_udp(self) -> None:
        """Plan anew where an outbound has turned out to carry UDP, or not to."""
        unable = await self._plane.without_udp()
        if unable == self._unable:
            return
        self._unable = unable
        if unable - self._assembly.unable:
            said = logs.fields(outbounds=", ".join(sorted(unable)))
            log.warning("no UDP by this way: it is refused", extra=said)
        await self._adopt()

    async def _watch_programs(self) -> None:
        if await asyncio.to_thread(programs_moved, self._assembly, self._found):
            await self._adopt()

    async def _network_changed(self) -> None:
        """Adopt it; where that fails once more, since another event may never come."""
        wait_s = FIRST_RETRY_S
        while not await self._attempt(self._adopt):
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, RECONCILE_S)

    async def _adopt(self) -> None:
        """Compile the same configuration for the machine as it is now; repair, and prove again."""
        async with self._changing:
            old = self._assembly
            fresh = await asyncio.to_thread(reassemble, old, self._unable)
            await self._keep_device(self._blueprint(fresh, self._found))
            steps = await self._kernel.apply(fresh.plan, old.plan)
            if steps:
                log.warning("repaired", extra=logs.fields(steps="; ".join(steps)))
            await self._put_in_force(fresh, await asyncio.to_thread(findings, fresh))
            await self._attempt(partial(self._let_go, old, fresh))

    async def _let_go(self, old: Assembly, fresh: Assembly) -> None:
        """Take away the ways of the old assembly, once the data plane uses none of them."""
        if {*old.plan.ip_rules, *old.plan.routes} - {*fresh.plan.ip_rules, *fresh.plan.routes}:
            await self._kernel.apply(fresh.plan)

    async def _reread_lists(self) -> None:
        """Lists that have changed on disk come into force; all else stays as it is."""
        if not await self._lists.reread(self._assembly.store):
            return
        async with self._changing:
            fresh = await asyncio.to_thread(with_fresh_sets, self._assembly)
            await self._kernel.apply(fresh.plan)
            await self._put_in_force(fresh, self._found)
        self._lists.in_force()

    async def _fetch_lists(self) -> None:
        await self._lists.fetch(self._assembly.store, self._connector)

    async def _put_in_force(self, fresh: Assembly, found: tuple[Finding, ...]) -> None:
        warn_of_refused(each for each in found if each not in self._found)
        warn_of_lookups(set(fresh.lookups) - set(self._assembly.lookups))
        plan = self._blueprint(fresh, found)
        await self._plane.adopt(plan)
        # Not before: who is told of it may rely on it.
        self._assembly, self._found = fresh, found
        if plan.listen_on.tun is None:
            await self._let_device_go()
        await self._keeper.tell(self._plane, fresh.config)

    def _blueprint(self, assembly: Assembly, found: tuple[Finding, ...]) -> Blueprint:
        groups = self._keeper.standings(assembly.config)
        return blueprint(assembly, found, self._safety, groups)

    def _connector(self, via: str) -> Connect:
        """Opens connections of our own by an outbound."""
        plan = self._blueprint(self._assembly, self._found)
        return connector(plan, self._assembly.config, via)

    async def _reload_on_hang_up(self) -> None:
        while True:
            await self._hang_up.wait()
            self._hang_up.clear()
            try:
                report = await self.reload()
            except GatewayError as error:
                log.error(  # noqa: TRY400 - an expected refusal: a traceback would hide its reason
                    "reload refused; the old configuration stays in force",
                    extra=logs.fields(error=error, hint=error.hint),
                )
            else:
                log.info("reloaded", extra=logs.fields(changes="; ".join(report.changes)))

    # --- what others may ask ---------------------------------------------------------------

    async def reload(self) -> ReloadReport:
        """Read the file again and put it in force; established flows go on.

        Raises ``GatewayError``; the old state is then still in force.
        """
        async with self._changing:
            if self._state == "stopping":
                raise GatewayError("the gateway is stopping", "start it with the new file")
            old = self._assembly
            fresh = await asyncio.to_thread(assemble, self._path, None, self._unable)
            require_reloadable(old, fresh)
            found = await asyncio.to_thread(findings, fresh)
            require_loop_free(found)
            require_apart(fresh)
            plan = self._blueprint(fresh, found)
            if fresh.config.inbound.port != old.config.inbound.port:
                require_free(plan.listen_on)
            await self._keep_device(plan)
            await self._plane.listen(plan)
            try:
                await self._kernel.apply(fresh.plan, old.plan)
            except GatewayError:
                await self._plane.adopt(self._blueprint(old, self._found))
                raise
            logs.configure(fresh.config.log.level, fresh.config.log.format)
            if fresh.foreseen:
                found = await asyncio.to_thread(findings, fresh)
            await self._put_in_force(fresh, found)
            await self._attempt(partial(self._let_go, old, fresh))
            return ReloadReport(changes(old.config, fresh.config))

    async def plan(self) -> PlanReport:
        """The plan in force, and how the kernel differs from it."""
        plan, unable = self._assembly.plan, tuple(sorted(self._assembly.unable))
        installed = await self._kernel.snapshot(plan.backend)
        return PlanReport(render(plan), plan.placements, diff(installed, plan).render(), unable)

    async def explain(self, words: Mapping[str, str]) -> Explanation:
        """What would become of a flow under what is in force."""
        assembly, found = self._assembly, self._found
        asked = question(assembly, words)
        groups = self._keeper.report(assembly.config)
        return await asyncio.to_thread(explain, assembly, found, asked, groups)

    async def shadow(self, path: Path) -> ShadowReport:
        """Which live flows would go elsewhere under another file."""
        fresh = await asyncio.to_thread(assemble, path)
        live = await self._plane.flows(0)
        return await asyncio.to_thread(shadow, self._assembly, fresh, live)

    async def flows(self, recent: int) -> list[FlowRecord]:
        """Live flows, then at most ``recent`` closed ones, latest first."""
        return await self._plane.flows(recent)

    async def groups(self) -> tuple[GroupRecord, ...]:
        """Every group, with its members."""
        return self._keeper.report(self._assembly.config)

    async def select(self, group: str, member: str) -> GroupRecord:
        """Have a group take a member, from now on."""
        async with self._changing:
            return await self._keeper.choose(self._plane, self._assembly.config, group, member)

    async def counters(self) -> dict[str, int]:
        """Totals since the start."""
        lists = self._lists.counters(self._assembly.store)
        return {**await self._plane.counters(), **self._keeper.counters, **lists}

    async def health(self) -> Health:
        """The gateway in one look."""
        config = self._assembly.config
        return Health(
            state=self._state,
            version=VERSION,
            pid=os.getpid(),
            config=str(self._path),
            started=self._started,
            uptime_s=time.time() - self._started,
            mode=config.inbound.tcp,
            backend=self._assembly.backend.value,
            backend_reason=self._assembly.backend_reason,
            flows=await self._plane.live_count(),
            outbounds=outbounds_health(self._assembly, self._found),
            without_udp=tuple(sorted(self._assembly.unable)),
        )
