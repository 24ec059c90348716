"""``gateway explain``."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import click

from gateway.assembly import assemble, findings
from gateway.cli.options import config_option, json_option, run_dir_option
from gateway.cli.show import columns, print_json
from gateway.control.client import ControlClient
from gateway.errors import GatewayError
from gateway.explain.answer import explain as explain_flow
from gateway.explain.answer import question
from gateway.explain.question import read_source, read_target
from gateway.groups.report import report
from gateway.groups.state import Observed
from gateway.keeper import choices_of, read_choices
from gateway.kernel.sockets import resolve

#: How often flows are asked for (seconds), and how many that have ended since are seen.
_PERIOD_S: Final = 0.5
_RECENT: Final = 1000


@click.command()
@click.argument("source", default="")
@click.argument("target", default="")
@config_option
@run_dir_option
@click.option("--running", is_flag=True, help="Ask the running gateway instead of the file.")
@click.option("--live", is_flag=True, help="Explain the running gateway's flows as they come.")
@click.option("--count", type=click.IntRange(min=1), help="With --live: end after so many.")
@click.option(
    "--at", default="", metavar="TIME", help="When: 22:30 (today) or `fri 22:30`; now if not said."
)
@click.option("--address", default="", help="The address that the name in TARGET has.")
@click.option("--resolve", "resolving", is_flag=True, help="Ask this machine's resolver for it.")
@click.option("--name", default="", help="The name that a flow to an address would tell.")
@click.option("--sniffed", default="", help="The protocol that its first bytes are of: tls, quic.")
@click.option("--interface", default="", help="Where it comes in, if not where answers go out.")
@click.option("--device", default="", help="The client's MAC address, dhcp:NAME or device name.")
@json_option
def explain(
    source: str,
    target: str,
    config: Path,
    run_dir: Path,
    running: bool,
    live: bool,
    count: int | None,
    at: str,
    address: str,
    resolving: bool,
    name: str,
    sniffed: str,
    interface: str,
    device: str,
    as_json: bool,
) -> None:
    """Say what would become of one flow, and why, without sending it.

    SOURCE is a client's address, with a port if need be; TARGET is HOST:PORT/PROTOCOL, TCP if
    not said. A name is taken for what the flow's first bytes tell, and is not looked up unless
    --resolve says so. Shown are the netfilter rules that the first packet meets, each of your
    rules and why it did not match, and the kernel's own answer to which way it goes.

    \b
    Examples:
      gateway explain 192.168.20.5 www.video.example:443
      gateway explain 192.168.20.5 www.video.example:443 --at 22:30
      gateway explain fd00:20::5 [2001:db8::53]:53/udp --json
      gateway explain --live
    """
    if live:
        _follow(ControlClient(run_dir), count, as_json)
        return
    words = {
        "source": source,
        "target": target,
        "address": _resolved(source, target) if resolving else address,
        "name": name,
        "sniffed": sniffed,
        "interface": interface,
        "device": device,
        "at": at,
    }
    words = {key: word for key, word in words.items() if word}
    if running:
        explanation = ControlClient(run_dir).get(f"/explain?{urlencode(words)}")
    else:
        assembly = assemble(config)
        asked = question(assembly, words)
        chosen = read_choices(choices_of(assembly.config, config))
        groups = report(assembly.config, Observed(chosen=chosen), time.time())
        explanation = asdict(explain_flow(assembly, findings(assembly), asked, groups))
    if as_json:
        print_json(explanation)
    else:
        click.echo(explanation_text(explanation))


def _follow(client: ControlClient, count: int | None, as_json: bool) -> None:
    """Explain flows that begin from now on, once they are decided."""
    known = {flow["id"] for flow in client.get(f"/flows?recent={_RECENT}")["flows"]}
    told = 0
    while True:
        flows = client.get(f"/flows?recent={_RECENT}")["flows"]
        known &= {flow["id"] for flow in flows}  # the others never come back
        for flow in reversed(flows):
            if flow["id"] in known or not flow["outbound"]:
                continue
            known.add(flow["id"])
            words = {
                "source": flow["client"],
                "target": f"{flow['destination']}/{flow['protocol']}",
                "name": flow["name"],
                "sniffed": flow["sniffed"],
                "interface": flow["interface"],
            }
            query = urlencode({key: word for key, word in words.items() if word})
            explanation = client.get(f"/explain?{query}")
            if as_json:
                click.echo(json.dumps({"id": flow["id"], **explanation}))
            else:
                click.echo(f"# flow {flow['id']}\n{explanation_text(explanation)}\n")
            told += 1
            if told == count:
                return
        time.sleep(_PERIOD_S)


def _resolved(source: str, target: str) -> str:
    """The first address of the target's name that is of the source's family."""
    host = read_target(target)[1].host
    for address in resolve(host):
        if (":" in address) == (":" in read_source(source).host):
            return address
    raise GatewayError(f"{host} does not resolve now", "give its --address")


def explanation_text(told: dict[str, Any]) -> str:
    """An explanation as people read it."""
    about = [
        ["flow", f"{told['protocol']} {told['source']} -> {told['destination']}"],
        ["name", told["name"]],
        ["at", told["at"]],
        ["arrives on", told["interface"] or "nothing: this machine sends it"],
        ["netfilter", f"{told['backend']}: {told['fate']}"],
        ["takes", _takes(told)],
        *(["group", _group(group)] for group in told["groups"]),
        *(["way", _way(way)] for way in told["ways"]),
        *(["note", note] for note in told["notes"]),
    ]
    parts = [columns([row for row in about if row[1]])]
    hops = [
        [hop["chain"], hop["rule"], hop["action"] + (f" if {hop['doubt']}" if hop["doubt"] else "")]
        for hop in told["netfilter"]
    ]
    if hops:
        parts.append(columns([["CHAIN", "MATCHED", "ACTION"], *hops]))
    if told["rules"]:
        rows = [[tried["rule"], _outcome(tried)] for tried in told["rules"]]
        parts.append(columns([["RULE", "OUTCOME"], *rows]))
    return "\n\n".join(parts)


def _takes(told: dict[str, Any]) -> str:
    if told["by"] == "nobody":
        return "direct: routed on as if the gateway were not there"
    named = "" if told["outbound"] == told["takes"] else f" ({told['outbound']})"
    return f"{told['takes']}{named}, decided by the {told['by']}: {told['rule']}"


def _group(chosen: dict[str, Any]) -> str:
    return f"{chosen['group']} ({chosen['type']}) -> {chosen['member']}: {chosen['reason']}"


def _way(way: dict[str, Any]) -> str:
    by = f" by {way['strategy']}" if way["strategy"] else ""
    marked = f" with mark {way['mark']}" if way["mark"] else ""
    proof = f"; loop guard: {way['proof']}" if way["proof"] else ""
    reason = f": {way['reason']}; {way['hint']}" if way["reason"] else ""
    return f"to {way['destination']}{by}{marked}: {way['route']}{proof}{reason}"


def _outcome(tried: dict[str, Any]) -> str:
    if tried["outcome"] == "missed":
        return f"missed: {tried['key']} is {tried['seen']}"
    return str(tried["outcome"])
