"""Our TUN takes traffic by routing: the matrix of ``gateway lab loops``, and what is not taken."""

from __future__ import annotations

import socket
from functools import partial
from itertools import product

import pytest
from datagrams import ECHO, answering, ask, echo, talking
from test_strategies import tried
from traffic import (
    FAMILIES,
    address,
    curl,
    dial,
    flow_of,
    listen,
    peer_seen,
    running,
    target,
    targets,
    url,
)

from gateway.lab.gateway_process import ENVIRONMENT, gateway_command
from gateway.lab.lab import Lab
from gateway.lab.own_tun import FAKE, OwnTun, accepted, tun_config
from gateway.lab.process import wait_until
from gateway.lab.written_back import written_back
from gateway.marks import TABLE_CAPTURE

BOTH = {"default-route", "default-route, LAN"}
OWN = {"default-route"}


def test_the_default_route(lab: Lab) -> None:
    """LAN and own traffic, while the uplink changes, fails, and the gateway is killed."""
    assert tried(list(OwnTun(lab).default_route())) == {
        "without": OWN,
        "captured": BOTH,
        "another router": BOTH,
        "address renewed": BOTH,
        "default lost": OWN,
        "default back": BOTH,
        "link down": OWN,
        "link up": BOTH,
        "killed, closed": OWN,
        "cleaned up": OWN,
        "killed, open": OWN,
    }


def test_prefixes(lab: Lab) -> None:
    """What is written down is taken, and nothing else; a server in there is no loop."""
    ways = {"prefixes"}
    assert tried(list(OwnTun(lab).prefixes())) == dict.fromkeys(
        ["without", "captured", "another host"], ways
    )


def test_two_subnets(lab: Lab) -> None:
    """Told apart, what one sends never enters the device, and its own address is seen."""
    ways = {"subnet office", "subnet kids"}
    assert tried(list(OwnTun(lab).by_subnet())) == {"both captured": ways, "one captured": ways}


def test_a_packet_that_nobody_carries(lab: Lab) -> None:
    """Written back as it came it goes round until its hops are spent; ours ends it at once."""
    ways = {"end of a packet"}
    assert tried(list(written_back(lab))) == {"written back": ways, "refused": ways}


def test_a_mark_that_netfilter_sets(lab: Lab) -> None:
    """Alone it leads past the TUN with the TUN's address, to which nobody answers."""
    ways = {"mark by netfilter"}
    assert tried(list(OwnTun(lab).marked_by_netfilter())) == dict.fromkeys(
        ["without", "mark alone", "and masqueraded"], ways
    )


def test_answers_to_what_came_from_outside_leave_as_it_came(module_lab: Lab, backend: str) -> None:
    """A server on this machine, and one in the LAN, are reached from the internet."""
    lab, internet = module_lab, module_lab.internet
    with running(lab, tun_config(lab, capture="default-route"), backend=backend) as gateway:
        for machine, family in product((lab.router, lab.client("desk")), FAMILIES):
            # By an address of the internet that is nobody's neighbour.
            host, far = address(machine, family), target(lab, family)
            with (
                listen(machine, host, 8080) as server,
                dial(internet, host, 8080, source=far) as sock,
            ):
                conversation, peer = server.accept()
                with conversation:
                    assert peer[0] == far
                    conversation.sendall(b"x")
                    assert sock.recv(1) == b"x"
        assert accepted(gateway) == 0


def test_datagrams_and_echoes(module_lab: Lab) -> None:
    """Of the LAN and of this machine, through the TUN; and once the device has been removed."""
    lab = module_lab
    config = tun_config(lab, capture="default-route")
    with answering(lab, {ECHO: echo}), running(lab, config) as gateway:
        for _ in ("at first", "with another device"):
            for machine, host in product((lab.router, lab.client("desk")), targets(lab, "web")):
                with talking(machine, host) as sock:
                    wait_until(partial(answered, sock), f"an answer of {host}")
                machine.run(["ping", "-c", "1", "-W", "20", host])
            before = gateway.counters()
            assert before["udp_flows"] >= 4
            lab.router.run(["ip", "link", "del", "gateway0"])
            wait_until(lambda: captures(lab), "the device, with its routes")


def answered(sock: socket.socket) -> bool:
    """Whether a datagram is."""
    sock.settimeout(1)
    try:
        return ask(sock) == b"hello"
    except OSError:
        return False


def captures(lab: Lab) -> bool:
    """Whether both families are routed into the device: until then, nothing is routed at all."""
    shown = ("route", "show", "table", str(TABLE_CAPTURE))
    asked = (["ip", family, *shown] for family in ("-4", "-6"))
    return all("dev gateway0" in lab.router.run(each, check=False).stdout for each in asked)


def test_explain_knows_what_enters_the_device(module_lab: Lab) -> None:
    """What routes take, and which rule decides there."""
    lab = module_lab
    config = tun_config(lab, {"destination": targets(lab, "web"), "to": "home"})
    config["tun"] = {"capture": "default-route"}
    with running(lab, config) as gateway:
        asked = ("explain", "--running", "--run-dir", str(gateway.run_dir))
        client = address(lab.client("desk"), 4)
        command = gateway_command(*asked, client, f"{target(lab, 4)}:80")
        way = lab.router.run(command, environment=ENVIRONMENT).stdout
        assert "into gateway0" in way
        assert "takes       home" in way


def test_strict_validation_of_sources(module_lab: Lab) -> None:
    """Answers to marked packets come by an uplink that nobody else's packets would take."""
    lab = module_lab
    keys = ("net.ipv4.conf.all.rp_filter", "net.ipv4.conf.wan0.rp_filter")
    before = [lab.router.sysctl(key) for key in keys]
    try:
        for key in keys:
            lab.router.sysctl(key, "1")
        with running(lab, tun_config(lab, capture="default-route")):
            done = curl(lab.client("desk"), url(target(lab, 4), "/whoami"))
            assert done.returncode == 0, done.stderr
    finally:
        for key, value in zip(keys, before, strict=True):
            lab.router.sysctl(key, value)


def test_fake_addresses(module_lab: Lab) -> None:
    """By the name that a client says a flow goes on; without one it is refused, and counted."""
    lab, desk = module_lab, module_lab.client("desk")
    config = tun_config(lab, {"destination": list(FAKE.values()), "to": "home"}, capture="fake-ip")
    config["sniff"] = {"override": "target", "timeout": 10}
    with running(lab, config) as gateway:
        for family, fake in FAKE.items():
            host = f"[{fake}]" if family == 6 else fake
            told = ["--resolve", f"web.lab.example:80:{host}"]
            done = curl(desk, "http://web.lab.example/whoami", *told)
            assert done.returncode == 0, done.stderr
            with dial(desk, fake, 80) as sock:
                port = sock.getsockname()[1]
                sock.sendall(bytes(100))  # there is no name in that
                with pytest.raises(ConnectionResetError):
                    sock.recv(1)
            assert flow_of(gateway, port)["close_reason"] == "fake-address"
            with talking(desk, fake) as sock, pytest.raises(ConnectionRefusedError):
                ask(sock)
        counters = gateway.counters()
        assert (counters["closed_fake-address"], counters["udp_closed_fake-address"]) == (2, 2)
        for host in targets(lab, "web"):
            peer_seen(desk, host)
        assert accepted(gateway) == counters["flows_accepted"], "what is real is not taken"


def test_a_pool_that_somebody_uses_is_refused(lab: Lab) -> None:
    """At the start, with the link that has it."""
    lab.router.run(["ip", "address", "add", "198.18.0.1/24", "dev", "wan0"])
    gateway = lab.start_gateway(tun_config(lab, capture="fake-ip"), wait=False)
    assert gateway.process.wait() == 1
    assert "198.18.0.0/24 of wan0" in "\n".join(gateway.log)
