"""``gateway demo``: real traffic of two LAN clients through a real gateway, with proof.

What the table says about rules and outbounds is the gateway's own account: its flow
records for what it relayed, and its policy and plan for what the kernel decided alone.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.config.load import load
from gateway.decision import DIRECT, REJECT
from gateway.flow import FlowFacts, Protocol
from gateway.lab.gateway_process import PACKAGE_PARENT, GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import LabError, wait_until
from gateway.lab.snapshot import Snapshot
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.traffic import Fetch, fetch
from gateway.policy.compile import compile_policy
from gateway.rulesets.store import load_rule_sets

DOWNLOAD_BYTES = 5_000_000
LOG_COLUMNS = 130
#: Client, and the host it asks for.
REQUESTS = (("kid", "web"), ("kid", "blocked"), ("desk", "web"), ("desk", "mirror"))


@dataclass(frozen=True, slots=True)
class Account:
    """What the gateway says about one connection; ``decided_by`` is kernel or listener."""

    rule: str
    outbound: str
    decided_by: str
    bytes_down: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``client`` and ``host`` by their names in the topology."""

    client: str
    host: str
    fetch: Fetch
    account: Account


class DemoError(LabError):
    """Something did not go as the gateway's own rules say."""


def demo(*, keep: bool = False, remove: bool = False) -> None:
    """Run the demo; ``keep`` leaves lab and gateway up, ``remove`` removes a kept one.

    Raises ``LabError`` where the lab does not come up, and ``DemoError`` where what
    happened is not what the rules say, or something stayed behind.
    """
    # Rich takes 80 columns where there is no terminal, which would cut addresses.
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = LOG_COLUMNS
    Demo(console).run(keep=keep, remove=remove)


class Demo:
    """One run of it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def run(self, *, keep: bool, remove: bool) -> None:
        """As ``demo``."""
        removed = Lab.remove_kept() if keep or remove else []
        if removed:
            self._say(f"removed the lab that was kept before: {', '.join(removed)}")
        if remove:
            if not removed:
                self._say("no lab is kept: nothing to remove")
            return
        Lab.sweep()
        host = Snapshot.take(_run_here)
        with ExitStack() as stack:
            self._say("building the LAN: kid and desk, each in its subnet; router; internet")
            lab = stack.enter_context(Lab(keep=keep))
            lab.start_servers()
            first = self._round(lab, "tproxy", ("auto",))
            other = "iptables" if first == "nftables" else "nftables"
            if keep:
                gateway = self._start(lab, "tproxy", (first,))
                stack.pop_all()
                self._explain_kept(lab, gateway, first)
                return
            self._round(lab, "redirect", (other, first))
        self._prove("this machine", host, Snapshot.take(_run_here))
        self._say("the lab is gone")

    # --- one gateway, all requests -------------------------------------------------------

    def _round(self, lab: Lab, mode: str, backends: Sequence[str]) -> str:
        """Show one way of diverting, and that it leaves nothing; the backend that was used."""
        before = lab.router.snapshot()
        gateway = self._start(lab, mode, backends)
        backend = str(gateway.control.get("/health")["backend"])
        self._say(f"{mode} with {backend}: sending the clients' traffic")
        connects = len(lab.socks_records())
        rows = self._rows(lab, gateway)
        self._print(rows, f"{mode.upper()} with {backend}")
        self._check(lab, rows, len(lab.socks_records()) - connects)
        status = gateway.stop()
        if status != 0:
            raise DemoError(f"the gateway ended with status {status}", "\n".join(gateway.log[-5:]))
        self._prove("the router", before, lab.router.snapshot())
        return backend

    def _start(self, lab: Lab, mode: str, backends: Sequence[str]) -> GatewayProcess:
        """The gateway with the first of ``backends`` that works on this machine."""
        *first, last = backends
        for backend in first:
            try:
                return lab.start_gateway(rules(lab), mode=mode, backend=backend)
            except LabError as error:
                self._say(f"{backend} does not work here, using {last}: {error}")
        return lab.start_gateway(rules(lab), mode=mode, backend=last)

    def _rows(self, lab: Lab, gateway: GatewayProcess) -> list[Row]:
        """Send every request, then ask the gateway about each."""
        done = [
            (client, host, self._fetch(lab, client, host, family))
            for client, host in REQUESTS
            for family in FAMILIES
        ]
        wait_until(
            lambda: all(flow["state"] == "closed" for flow in gateway.flows()), "flows to close"
        )
        account = _Accounts(gateway).of
        return [Row(client, host, fetched, account(fetched)) for client, host, fetched in done]

    def _fetch(self, lab: Lab, client: str, host: str, family: FamilyNumber) -> Fetch:
        machine, target = lab.client(client), lab.topology.targets[host]
        return fetch(machine, target, family, DOWNLOAD_BYTES, directory=lab.directory)

    def _check(self, lab: Lab, rows: Sequence[Row], connects: int) -> None:
        """Each row as its rule says, and each relayed flow one connection upstream: no loop."""
        wrong = [f"{row.client} to {row.host}" for row in rows if not as_decided(lab, row)]
        if wrong:
            raise DemoError(f"not what the gateway's rules say: {', '.join(wrong)}")
        relayed = sum(row.account.decided_by != "kernel" for row in rows)
        if connects != relayed:
            raise DemoError(f"{relayed} flows were relayed in {connects} connections: a loop")
        self._say(f"no loop: {relayed} flows, {connects} connections at the SOCKS servers")

    # --- printing ------------------------------------------------------------------------

    def _say(self, text: str) -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(f"[dim]{elapsed:5.1f} s[/dim]  {escape(text)}", soft_wrap=True)

    def _print(self, rows: Sequence[Row], title: str) -> None:
        table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
        for heading in ("client", "destination", "rule that fired", "outbound", "server saw"):
            table.add_column(heading, overflow="fold")
        for heading in ("bytes", "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in rows:
            table.add_row(*map(escape, _cells(row)))
        self._console.print(table)

    def _prove(self, what: str, before: Snapshot, after: Snapshot) -> None:
        difference = before.difference(after)
        if difference:
            raise DemoError(f"{what} is not as it was before:\n{difference}")
        kinds = ", ".join(dict.fromkeys(name.split(" (")[0] for name in before.sections))
        self._say(f"{what} is as before: {before.lines} lines of {kinds} compared")

    def _explain_kept(self, lab: Lab, gateway: GatewayProcess, backend: str) -> None:
        web = lab.topology.targets["web"]
        command = "./gw" if (Path(PACKAGE_PARENT) / "gw").exists() else "gateway"
        options = f"--run-dir {gateway.run_dir}"
        listing = "nft list ruleset" if backend == "nftables" else "iptables-legacy-save"
        lines = [
            "The LAN and the gateway stay up. To play:",
            f"  ip netns exec {lab.client('kid').namespace} curl http://{web.ipv4}/whoami",
            f"  ip netns exec {lab.client('desk').namespace} curl -g 'http://[{web.ipv6}]/whoami'",
            f"  {command} flows --recent 10 {options}",
            f"  ip netns exec {lab.router.namespace} {listing}",
            f"  edit {gateway.config_path}, then: {command} reload {options}",
            "To remove it all:",
            f"  {command} demo --remove",
        ]
        self._console.print(escape("\n".join(lines)), soft_wrap=True)


def rules(lab: Lab) -> dict[str, Any]:
    """The demo's configuration: two subnets with different ways out, and one host refused.

    One connection a flow, as they are counted: to learn how a server takes the handshake may take
    two, where one is slow to answer.
    """
    named = ("mirror", "blocked")
    servers = {name: {**lab.socks(name), "handshake": "strict"} for name in ("home", "work")}
    config = lab.config(
        {"destination": "blocked", "to": REJECT},
        {"subnet": "kids", "to": "home"},
        {"subnet": "office", "destination": "mirror", "to": DIRECT},
        {"to": "work"},
        outbounds=servers,
    )
    entries = {name: list(lab.topology.targets[name]) for name in named}
    sets = {name: {"type": "inline", "entries": addresses} for name, addresses in entries.items()}
    return {**config, "rule_sets": sets}


class _Accounts:
    """The gateway's account of connections, by the client's address and port."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._relayed = {flow["client"]: flow for flow in gateway.flows()}
        loaded = load(gateway.config_path)
        self._policy = compile_policy(loaded.config, load_rule_sets(loaded))
        self._places = {p["index"]: p["place"] for p in gateway.placements()}

    def of(self, done: Fetch) -> Account:
        """Its flow record; without one, the rule that the policy gives, and where it runs."""
        flow = self._relayed.get(str(done.client))
        if flow is not None:
            return Account(flow["rule"], flow["outbound"], "listener", flow["bytes_down"])
        decision = self._policy.settle(FlowFacts(Protocol.TCP, done.client, done.destination))
        return Account(decision.rule, decision.outbound, self._places[decision.rule_index])


def as_decided(lab: Lab, row: Row) -> bool:
    """Whether what happened is what the outbound means."""
    done, outbound = row.fetch, row.account.outbound
    if outbound == REJECT:
        return not done.seen and done.downloaded_bytes == 0
    if outbound == DIRECT:
        return done.intact and done.seen == done.client.host
    return done.intact and done.seen in set(lab.topology.upstreams[outbound].addresses)


def _cells(row: Row) -> Iterator[str]:
    done, account = row.fetch, row.account
    yield row.client
    yield f"{row.host} {done.destination}"
    # The text of a rule ends in its outbound, which has a column of its own.
    yield account.rule.partition(" ->")[0]
    yield f"{account.outbound} (kernel)" if account.decided_by == "kernel" else account.outbound
    yield done.seen or "nothing"
    yield f"{done.downloaded_bytes if account.bytes_down is None else account.bytes_down:,}"
    yield f"{done.duration_s * 1000:.0f} ms"


def _run_here(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise LabError(f"there is no `{command[0]}` command", "./gw installs it") from error
