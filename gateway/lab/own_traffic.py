"""Own traffic of the gateway's machine, diverted: our own sockets among it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

from gateway.errors import GatewayError
from gateway.lab.cells import Cell, cell
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import happens
from gateway.lab.storm import NAIVE, STORM, becomes, end_storm
from gateway.lab.topology import FAMILIES
from gateway.lab.trials import Outcome, Seen, Sending, try_all


def own_traffic(lab: Lab, backend: str | None = None) -> Iterator[Cell]:
    """TPROXY and REDIRECT of what this machine sends: unmarked, one flow becomes a storm."""
    targets = dict(zip(FAMILIES, lab.topology.targets["web"], strict=True))
    config = lab.config({"to": "home"}, outbounds={"home": lab.socks("home")})
    config["lan"]["this_machine"] = True
    config["inbound"]["workers"] = 1
    home = lab.topology.upstreams["home"].addresses
    for mode in ("tproxy", "redirect"):
        for family in FAMILIES:
            config["inbound"]["tcp"] = mode
            looped = becomes(lab, config, targets[family], backend=backend)
            yield cell(f"mark, {mode}", "without", family, Outcome.LOOP, looped, "")
        gateway = lab.start_gateway(config, backend=backend)
        seen = try_all(lab.router, targets, None)
        accepts = gateway.counters()["flows_accepted"]
        for family, peer in zip(FAMILIES, home, strict=True):
            once = seen[family] if accepts == len(targets) else Seen(Outcome.LOOP)
            yield cell(f"mark, {mode}", "diverted", family, Outcome.DIRECT, once, peer)
        gateway.stop()


def own_datagrams(lab: Lab) -> Iterator[Cell]:
    """Of what this machine sends, UDP by TPROXY: unmarked, one datagram goes round for ever."""
    targets = dict(zip(FAMILIES, lab.topology.targets["web"], strict=True))
    wan = dict(zip(FAMILIES, lab.router.spec.link("wan").pair, strict=True))
    rules = [{"destination": host, "to": f"out{family}"} for family, host in targets.items()]
    # From an address of their own: with the program's, they would be its flow.
    outbounds = {f"out{f}": {"type": "direct", "source": address} for f, address in wan.items()}
    config = lab.config(*rules, {"to": "direct"}, outbounds=outbounds)
    config["lan"]["this_machine"] = True
    config["inbound"] |= {"udp": "tproxy", "workers": 1}
    config["udp"] = {"flows": 2 * STORM}
    technique, way = "mark, tproxy, UDP", partial(Sending, lab.internet)
    for family, host in targets.items():
        naive = lab.start_gateway(config, program=NAIVE)
        seen = try_all(lab.router, {"": host}, None, way, 1.0)[""]
        if happens(partial(_is_storm, naive)):
            seen = Seen(Outcome.LOOP, "a storm of flows")
        end_storm(lab.router, naive)
        yield cell(technique, "without", family, Outcome.LOOP, seen, "")
    gateway = lab.start_gateway(config)
    seen_of = try_all(lab.router, targets, None, way)
    if _datagram_flows(gateway) > len(targets):
        seen_of = dict.fromkeys(targets, Seen(Outcome.LOOP, "more flows than were opened"))
    for family in FAMILIES:
        yield cell(technique, "diverted", family, Outcome.DIRECT, seen_of[family], wan[family])
    gateway.stop()


def _is_storm(gateway: GatewayProcess) -> bool:
    return _datagram_flows(gateway) > STORM


def _datagram_flows(gateway: GatewayProcess) -> int:
    """So far; 0 while it is too busy to say."""
    with suppress(GatewayError):
        return gateway.counters().get("udp_flows", 0)
    return 0
