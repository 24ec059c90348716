"""How UDP flows end and survive: time-outs, limits, lost associations, reloads, crashes, loops."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from datagrams import ECHO, TELL, Relay, Served, answering, ask, echo, seen_by, talking, tell
from traffic import (
    FAMILIES,
    Family,
    Witness,
    address,
    command,
    new_socket,
    peer_seen,
    running,
    target,
    upstream,
    wait_counter,
)

from gateway.errors import GatewayError
from gateway.flow import Endpoint
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.lab.storm import NAIVE
from gateway.outbound.spares import LEAST

QUIC = 443
PRESERVE = {"preserve": {"type": "direct", "preserve_source": True}}
#: Where the relay of a test is: beside a real server.
RELAY = Endpoint("203.0.113.7", 1081)


@pytest.fixture(scope="module")
def servers(module_lab: Lab) -> Iterator[Served]:
    with answering(module_lab, {ECHO: echo, TELL: tell, 53: echo, QUIC: tell}) as servers:
        yield servers


@contextmanager
def relay(lab: Lab) -> Iterator[Relay]:
    relay = Relay(lab.internet, *RELAY)
    try:
        yield relay
    finally:
        relay.close()


def through_relay(lab: Lab, *rules: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """All to the relay, by one process."""
    outbounds = {"relay": {"type": "socks5", "server": RELAY.host, "port": RELAY.port}}
    config = lab.config(*(rules or ({"to": "relay"},)), outbounds=outbounds)
    config["inbound"] |= {"udp": "tproxy", "workers": 1}
    return config | keys


def udp_flows(gateway: GatewayProcess) -> list[dict[str, Any]]:
    return [flow for flow in gateway.flows() if flow["protocol"] == "udp"]


# --- time-outs and limits -------------------------------------------------------------------


def test_quiet_flows_end_by_the_class_of_their_port(module_lab: Lab, servers: Served) -> None:
    """Each class by a time-out of its own, and no other; the next datagram opens anew."""
    lab, desk = module_lab, module_lab.client("desk")
    host = target(lab, 4)
    ports = {"udp_dns": 53, "udp": ECHO, "udp_stream": QUIC}
    # How often flows are looked at goes by the shortest of all, TCP's as well.
    patient = dict.fromkeys(ports, 600.0) | {"half_closed": 0.2}
    with (
        relay(lab),
        running(lab, through_relay(lab, timeouts=patient)) as gateway,
        ExitStack() as open_,
    ):
        socks = [open_.enter_context(talking(desk, host, port)) for port in ports.values()]
        for sock in socks:
            ask(sock)
        over = []
        for name, port in ports.items():
            gateway.reload(through_relay(lab, timeouts=patient | {name: 0.2}))
            over.append(f"{host}:{port}")
            wait_counter(gateway, "udp_closed_idle-timeout", len(over))
            ended = [flow for flow in udp_flows(gateway) if flow["state"] == "closed"]
            assert sorted(flow["destination"] for flow in ended) == sorted(over)
            assert {flow["close_reason"] for flow in ended} == {"idle-timeout"}
        gateway.reload(through_relay(lab, timeouts=patient))
        for sock in socks:
            assert ask(sock).endswith(b"hello")
        assert gateway.counters()["udp_flows"] == 2 * len(ports)


def test_one_device_cannot_take_all_the_room(module_lab: Lab, servers: Served) -> None:
    """Its own oldest quiet flow makes room; the one that is in use does not, nor do others'."""
    lab, desk, kid = module_lab, module_lab.client("desk"), module_lab.client("kid")
    config = through_relay(lab, udp={"flows_per_device": 16}, timeouts={"udp": 600})
    with relay(lab), running(lab, config) as gateway:
        host = target(lab, 4)
        with talking(kid, host) as other, talking(desk, host) as busy:
            ask(other)
            for _ in range(40):
                ask(busy)
                with talking(desk, host) as sock:
                    sock.send(b"one more")
            ask(busy)
            counters = gateway.counters()
            assert counters["udp_closed_evicted"] == counters["udp_flows"] - 17
            live = [flow for flow in udp_flows(gateway) if flow["state"] != "closed"]
            ports = {f"{s.getsockname()[0]}:{s.getsockname()[1]}" for s in (busy, other)}
            assert ports <= {flow["client"] for flow in live}


# --- associations ---------------------------------------------------------------------------


def test_a_lost_association_is_replaced_beneath_the_flow(module_lab: Lab, servers: Served) -> None:
    """The server hangs up; the flow goes on by another association."""
    lab, desk = module_lab, module_lab.client("desk")
    with (
        relay(lab) as server,
        running(lab, through_relay(lab)) as gateway,
        talking(desk, target(lab, 4)) as sock,
    ):
        ask(sock)
        wait_until(lambda: len(server.controls) > LEAST, "spares, which are to die too")
        for control in list(server.controls):
            control.shutdown(socket.SHUT_RDWR)
        wait_counter(gateway, "udp_dropped_association-lost")
        assert ask(sock) == b"hello"
        (flow,) = udp_flows(gateway)
        assert (flow["state"], flow["bytes_up"]) == ("relaying", 10)


def test_an_association_is_ready_before_it_is_needed(module_lab: Lab, servers: Served) -> None:
    """At the start, and again after each that is taken."""
    lab, desk = module_lab, module_lab.client("desk")
    with relay(lab) as server, running(lab, through_relay(lab)):
        for taken in range(3):
            # There are more where it takes the server long, and flows come soon.
            wait_until(lambda n=taken: len(server.controls) >= n + LEAST, "spares")  # type: ignore[misc]
            with talking(desk, target(lab, 4)) as sock:
                ask(sock)


@pytest.mark.parametrize(
    "bound", [Endpoint("0.0.0.0", 0), Endpoint("127.0.0.1", 0), Endpoint("relay.example", 0)]
)
def test_a_relay_address_of_no_use_is_replaced(
    module_lab: Lab, servers: Served, bound: Endpoint
) -> None:
    """By the server's own."""
    lab, desk = module_lab, module_lab.client("desk")
    with relay(lab) as server:
        server.bound = bound
        with running(lab, through_relay(lab)), talking(desk, target(lab, 4)) as sock:
            assert ask(sock) == b"hello"


def test_fragments_and_nonsense_of_a_relay_are_dropped_and_counted(
    module_lab: Lab, servers: Served
) -> None:
    """What is whole passes."""
    lab, desk = module_lab, module_lab.client("desk")
    with relay(lab) as server:
        server.change = lambda answer: [
            b"\0\0\1" + answer[3:],
            b"\0\0\0\x09" + answer[4:],
            b"\0\0\0",
            b"",
            answer,
        ]
        with running(lab, through_relay(lab)) as gateway:
            with talking(desk, target(lab, 4)) as sock:
                assert ask(sock) == b"hello"
            counters = gateway.counters()
            assert counters["udp_dropped_fragment"] == 1
            assert counters["udp_dropped_malformed"] == 3


def test_with_symmetric_mappings_each_far_end_sees_another_address(
    module_lab: Lab, servers: Served, family: Family
) -> None:
    """And nobody else is heard."""
    lab, desk = module_lab, module_lab.client("desk")
    out = {"out": {"type": "direct", "interface": "wan0"}}
    config = lab.config({"to": "out"}, outbounds=out) | {"udp": {"nat": "symmetric"}}
    config["inbound"] |= {"udp": "tproxy"}
    blocked = target(lab, family, "blocked")
    with (
        running(lab, config) as gateway,
        new_socket(desk, blocked, socket.SOCK_DGRAM) as sock,
        new_socket(lab.internet, blocked, socket.SOCK_DGRAM) as stranger,
    ):
        seen = []
        for name in ("web", "mirror"):
            sock.sendto(b"who?", (target(lab, family, name), TELL))
            seen.append(seen_by(sock.recv(100))[:2])
        assert len(set(seen)) == 2
        stranger.bind((blocked, 7777))
        stranger.sendto(b"psst", seen[0])
        wait_counter(gateway, "udp_dropped_stranger")


# --- an outbound without UDP --------------------------------------------------------------------


def test_quic_is_refused_where_the_outbound_carries_no_udp(
    module_lab: Lab, servers: Served, backend: str
) -> None:
    """At once, and before long by the kernel; TCP goes on; other UDP as the rule says."""
    lab, desk = module_lab, module_lab.client("desk")
    rules = (
        {"destination": target(lab, 4, "mirror"), "to": "home", "udp_fallback": "direct"},
        {"destination": target(lab, 6, "mirror"), "to": "home", "udp_fallback": "next"},
        {"destination": target(lab, 6, "mirror"), "protocol": "udp", "to": "direct"},
        {"to": "home"},
    )
    config = lab.config(*rules)
    config["inbound"] |= {"udp": "tproxy", "workers": 2}
    with running(lab, config, backend=backend) as gateway:

        def refused(host: str, port: int) -> bool:
            with talking(desk, host, port) as sock:
                try:
                    ask(sock)
                except ConnectionRefusedError:
                    return True
                return False

        for family in FAMILIES:
            assert refused(target(lab, family), QUIC)
            assert peer_seen(desk, target(lab, family)) in upstream(lab, "home")

        def planned() -> bool:
            return any("QUIC: refused" in each["rule"] for each in gateway.placements())

        wait_until(planned, "the plan to know of it")
        where = ("--run-dir", str(gateway.run_dir), "--json")
        asked = command(lab, "plan", "--config", str(gateway.config_path), *where)
        plan = json.loads(asked.stdout)
        assert (plan["without_udp"], plan["difference"]) == (["home"], "")
        assert json.loads(command(lab, "status", *where).stdout)["without_udp"] == ["home"]
        before = gateway.counters()["udp_refused"]
        for family in FAMILIES:
            assert refused(target(lab, family), QUIC)
            assert refused(target(lab, family, "mirror"), QUIC)
            assert refused(target(lab, family), ECHO)
            assert not refused(target(lab, family, "mirror"), ECHO)
            assert peer_seen(desk, target(lab, family)) in upstream(lab, "home")
        assert gateway.counters()["udp_refused"] == before


IP_RECVERR, IPV6_RECVERR = 11, 25


def test_a_way_that_is_lost_is_told(module_lab: Lab, servers: Served, family: Family) -> None:
    """As a router tells it; once there is a way again, the flow goes on."""
    lab, router = module_lab, module_lab.router
    config = lab.config({"to": "preserve"}, outbounds=PRESERVE)
    config["inbound"]["udp"] = "tproxy"
    route = ["ip", f"-{family}", "route"]
    default = router.run([*route, "show", "default"]).stdout.split()
    with (
        running(lab, config),
        talking(lab.client("desk"), target(lab, family), TELL) as sock,
    ):
        # Else only errors that are final are told to a program (ip(7)).
        if family == 4:
            sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        before = ask(sock)
        router.run([*route, "del", *default])
        try:
            with pytest.raises(OSError, match="No route to host"):
                ask(sock)
        finally:
            router.run([*route, "add", *default])

        sock.settimeout(1)

        def goes_on() -> bool:
            try:
                return ask(sock) == before
            except OSError:
                return False

        wait_until(goes_on, "the flow to go on")


# --- changes and crashes ---------------------------------------------------------------------


def test_a_reload_keeps_flows(module_lab: Lab, servers: Served) -> None:
    """They stay with their outbound, and new ones go by the new rules."""
    lab, desk = module_lab, module_lab.client("desk")
    host, natively = target(lab, 4), desk.spec.links[0].pair.ipv4
    with (
        relay(lab),
        running(lab, through_relay(lab)) as gateway,
        talking(desk, host, TELL) as old,
    ):
        before = seen_by(ask(old))
        gateway.reload(through_relay(lab, {"port": TELL, "to": "direct"}, {"to": "relay"}))
        assert seen_by(ask(old)) == before
        with talking(desk, host, TELL) as new:
            assert seen_by(ask(new))[0] == natively
        gateway.reload(through_relay(lab, {"to": "direct"}) | {"inbound": {"udp": "off"}})
        with talking(desk, host, TELL) as new:
            assert seen_by(ask(new))[0] == natively


@pytest.mark.parametrize("on_failure", ["closed", "open"])
def test_a_dead_gateway_leaks_or_not_as_written(lab: Lab, backend: str, on_failure: str) -> None:
    """Killed: UDP is dropped, or routed on, and never anything else."""
    desk = lab.client("desk")
    config = through_relay(lab)
    config["inbound"]["on_failure"] = on_failure
    with answering(lab, {TELL: tell}), relay(lab):
        gateway = lab.start_gateway(config, backend=backend)
        with talking(desk, target(lab, 4), TELL) as sock:
            ask(sock)
        witness = Witness(lab.internet, *desk.spec.links[0].pair)
        gateway.kill()
        for family in FAMILIES:
            with talking(desk, target(lab, family), TELL) as sock:
                sock.settimeout(0.3)

                def answered(sock: socket.socket = sock) -> bool:
                    try:
                        return bool(ask(sock))
                    except TimeoutError:
                        return False

                if on_failure == "open":
                    wait_until(answered, "the kernel to route it on")
                else:
                    assert not answered()
        assert bool(witness.packets) == (on_failure == "open")
        command(lab, "down", "--run-dir", str(gateway.run_dir))


# --- loops ------------------------------------------------------------------------------------


def diverting_itself(lab: Lab, family: Family) -> dict[str, Any]:
    """This machine's datagrams too, by sockets of its own (``mark`` alone keeps them apart)."""
    own = address(lab.router, family, "wan")
    config = lab.config({"to": "out"}, outbounds={"out": {"type": "direct", "source": own}})
    config["lan"]["this_machine"] = True
    config["inbound"] |= {"udp": "tproxy", "workers": 1}
    return config


def udp_flow_count(gateway: GatewayProcess) -> int:
    try:
        return gateway.counters().get("udp_flows", 0)
    except GatewayError:
        return 0


def test_the_detector_ends_a_loop_of_datagrams(
    module_lab: Lab, servers: Served, family: Family
) -> None:
    """Unmarked but detected: counted and named, once for each conversation."""
    lab, program = module_lab, (*NAIVE, "--detect-loops")
    with running(lab, diverting_itself(lab, family), program=program) as gateway:
        with talking(lab.router, target(lab, family)) as sock:
            sock.send(b"once")
            wait_counter(gateway, "udp_closed_loop")
        (flow,) = [flow for flow in udp_flows(gateway) if flow["close_reason"] == "loop"]
        assert "`marks.base`" in flow["detail"]
        assert udp_flow_count(gateway) == 2
