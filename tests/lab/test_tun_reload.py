"""What the TUN takes changes by a reload: flows stay where they are, and nothing is left."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from datagrams import TELL, ask, seen_by, served, talking, tell
from test_tun import config
from traffic import FAMILIES, dial, peer_seen, read, running, target, targets

from gateway.errors import GatewayError
from gateway.lab import serve
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.own_tun import accepted, tun_config

LAN: dict[str, Any] = {"capture": "lan"}
EVERYTHING: dict[str, Any] = {"capture": "default-route"}
FAKE: dict[str, Any] = {"capture": "fake-ip"}


def some(lab: Lab) -> dict[str, Any]:
    return {"capture": "prefixes", "prefixes": targets(lab, "blocked")}


def captured(lab: Lab, tun: dict[str, Any], backend: str = "auto") -> dict[str, Any]:
    """``mirror`` by SOCKS, its datagrams by an interface; all else direct."""
    mirror = targets(lab, "mirror")
    found = tun_config(
        lab,
        {"destination": mirror, "protocol": "udp", "to": "device"},
        {"destination": mirror, "to": "home"},
    )
    found["inbound"]["backend"] = backend
    found["outbounds"]["device"] = {"type": "direct", "interface": "wan0"}
    found["timeouts"] = {"udp": 600}  # some changes may take long
    return found | {"tun": tun}


class Open:
    """Flows that are open, one of each family: each says what it is told, and by whom."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._streams: list[socket.socket] = []
        self._calls: dict[socket.socket, tuple[str, int]] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        """End them all."""
        self._stack.close()

    def begin(self, machine: Machine, name: str) -> None:
        """TCP."""
        for family in FAMILIES:
            sock = dial(machine, target(self._lab, family, name), serve.ECHO_PORT)
            self._streams.append(self._stack.enter_context(sock))

    def call(self, machine: Machine, name: str) -> None:
        """UDP, to somebody who says what address it comes from."""
        for family in FAMILIES:
            talk = talking(machine, target(self._lab, family, name), TELL)
            sock = self._stack.enter_context(talk)
            self._calls[sock] = seen_by(ask(sock))[:2]

    def go_on(self) -> None:
        """All of them, as before."""
        for sock in self._streams:
            sock.sendall(b"still there")
            assert read(sock, 11) == b"still there"
        for sock, seen in self._calls.items():
            assert seen_by(ask(sock))[:2] == seen


@contextmanager
def flows(lab: Lab) -> Iterator[Open]:
    """Those of a test, with who answers datagrams."""
    # So long, whatever changes take, the kernel is to know whose they are.
    lab.router.sysctl("net.netfilter.nf_conntrack_udp_timeout", "600")
    found = Open(lab)
    with served() as servers:
        for host in targets(lab, "mirror", "web"):
            servers.add(lab.internet, host, TELL, tell)
        try:
            yield found
        finally:
            found.close()


def change(gateway: GatewayProcess, config: dict[str, Any]) -> None:
    """The kernel is then just as it is wanted."""
    gateway.reload(config)
    assert gateway.control.get("/plan")["difference"] == ""


def taken(lab: Lab, gateway: GatewayProcess, machine: Machine, name: str) -> set[int]:
    """The families whose new flow there comes to the gateway."""
    found = set()
    for family in FAMILIES:
        before = accepted(gateway)
        peer_seen(machine, target(lab, family, name))
        if accepted(gateway) > before:
            found.add(family)
    return found


def test_flows_stay_whatever_is_taken(module_lab: Lab, backend: str) -> None:
    """In the device, or past it; those of this machine, too. New ones go as it is written now."""
    lab, desk, own = module_lab, module_lab.client("desk"), module_lab.router
    both, none = set(FAMILIES), set[int]()
    with running(lab, captured(lab, LAN, backend)) as gateway, flows(lab) as open_:
        open_.begin(desk, "mirror")
        open_.call(desk, "mirror")
        open_.begin(desk, "web")  # the kernel alone
        assert len(gateway.flows(0)) == 2 * len(FAMILIES)

        change(gateway, captured(lab, some(lab), backend))
        open_.go_on()
        assert taken(lab, gateway, desk, "mirror") == none
        open_.begin(desk, "blocked")
        open_.begin(own, "blocked")

        change(gateway, captured(lab, EVERYTHING, backend))
        open_.go_on()
        assert taken(lab, gateway, desk, "mirror") == both
        open_.begin(own, "mirror")
        open_.call(own, "web")

        change(gateway, captured(lab, FAKE, backend))
        open_.go_on()
        assert taken(lab, gateway, own, "mirror") == none

        change(gateway, captured(lab, LAN, backend))
        open_.go_on()
        assert taken(lab, gateway, desk, "mirror") == both
        assert taken(lab, gateway, own, "mirror") == none


def test_halves_of_the_main_table_come_and_go(module_lab: Lab) -> None:
    """The older way of taking everything, by a reload."""
    lab, desk = module_lab, module_lab.client("desk")

    def everything(strategy: str) -> dict[str, Any]:
        found = captured(lab, {"capture": "default-route", "strategy": strategy})
        found["inbound"]["on_failure"] = "open"
        found["outbounds"]["home"]["interface"] = "wan0"
        found["rules"] = [{"to": "home"}]  # what is only marked has no way out beside halves
        return found

    with running(lab, everything("suppress")) as gateway, flows(lab) as open_:
        open_.begin(desk, "mirror")
        for strategy in ("split_default", "suppress"):
            change(gateway, everything(strategy))
            open_.go_on()
            assert taken(lab, gateway, desk, "mirror") == set(FAMILIES)


def test_what_the_readers_of_the_device_have_given_up(module_lab: Lab) -> None:
    """No others can take their place, so what a reload may need they keep; but for this."""
    lab, desk = module_lab, module_lab.client("desk")
    with (
        running(lab, config(lab), backend="nftables", workers=2) as gateway,
        flows(lab) as open_,
    ):
        open_.begin(desk, "web")
        wider = config(lab, udp="tproxy", workers=2, backend="nftables")
        gateway.reload(wider)
        open_.go_on()
        open_.call(desk, "mirror")
        elsewhere = {"type": "direct", "netns": lab.internet.namespace}
        wider["outbounds"]["elsewhere"] = elsewhere
        with pytest.raises(GatewayError, match="given up CAP_SYS_ADMIN"):
            gateway.reload(wider)
        open_.go_on()
