"""Each leg of a flow has the congestion control that was asked for."""

from __future__ import annotations

import pytest
from traffic import Family, address, dial, running, target

from gateway.errors import GatewayError
from gateway.lab import serve
from gateway.lab.lab import Lab


def in_use(lab: Lab, family: Family, peer: str) -> list[str]:
    """Of the router's connections with a peer (ss(8): the first word of the details)."""
    chosen = f"dst [{peer}]" if family == 6 else f"dst {peer}"
    shown = lab.router.run(["ss", "-tinHO", "state", "established", chosen]).stdout
    return [next(iter(line.split()[4:]), "") for line in shown.splitlines()]


@pytest.mark.parametrize(("lan", "wan"), [("reno", "cubic"), ("cubic", "reno")])
def test_both_legs(module_lab: Lab, family: Family, lan: str, wan: str) -> None:
    lab, desk = module_lab, module_lab.client("desk")
    server = lab.topology.upstreams["home"].addresses.of(family)
    home = {**lab.socks("home"), "server": server, "congestion_control": wan}
    config = lab.config({"to": "home"}, outbounds={"home": home})
    config["inbound"] = {**config.get("inbound", {}), "congestion_control": lan}
    with (
        running(lab, config),
        dial(desk, target(lab, family), serve.ECHO_PORT) as flow,
    ):
        flow.sendall(b"?")
        assert flow.recv(1) == b"?"
        assert in_use(lab, family, address(desk, family)) == [lan]
        assert in_use(lab, family, server) == [wan]


def test_one_that_the_kernel_lacks_is_refused_at_the_start(module_lab: Lab) -> None:
    config = module_lab.config({"to": "home"})
    config["inbound"] = {**config.get("inbound", {}), "congestion_control": "nonesuch"}
    with pytest.raises(GatewayError, match="nonesuch"), running(module_lab, config):
        pass
