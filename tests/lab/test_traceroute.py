"""traceroute from a LAN host, by each kind of probe: every hop is there, and none that is not."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from beyond import LINK, add_beyond, hops
from traffic import FAMILIES, Family, running

from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab

#: Of TCP: what the kernel routes on, and what ends in the gateway.
ROUTED, ENDED = "8080", "8081"
_LINE = re.compile(r"^ *(\d+) +(.*)$", re.MULTILINE)
#: An address, and not the time that follows it.
_ADDRESS = re.compile(r"(?<!\S)(?:[0-9a-f]*:[0-9a-f:]+|(?:[0-9]+\.){3}[0-9]+)(?!\S)")


@pytest.fixture(scope="module")
def far_lab(module_lab: Lab) -> Lab:
    """With a host two hops behind the gateway. No kernel there counts the errors that it tells."""
    machines = (module_lab.router, module_lab.internet, add_beyond(module_lab))
    for machine in machines:
        keys = ("net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit")
        machine.run(["sysctl", "-qw", *(f"{key}=0" for key in keys)])
    return module_lab


@pytest.fixture(
    scope="module",
    params=[("tun", "nftables"), ("tproxy", "nftables"), ("tproxy", "iptables")],
    ids="-".join,
)
def ways(request: pytest.FixtureRequest) -> tuple[str, str]:
    """How UDP is taken (ICMP by the TUN, or not at all), and by which firewall."""
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def way(ways: tuple[str, str]) -> str:
    return ways[0]


@pytest.fixture(scope="module")
def gateway(far_lab: Lab, ways: tuple[str, str]) -> Iterator[GatewayProcess]:
    way, backend = ways
    rules = [{"port": int(ROUTED), "to": "direct"}, {"to": "wan"}]
    config = far_lab.config(*rules, outbounds={"wan": {"type": "direct", "interface": "wan0"}})
    config["inbound"] = {"udp": way, "icmp": "tun" if way == "tun" else "direct"}
    with running(far_lab, config, backend=backend) as gateway:
        yield gateway


def path(lab: Lab, family: Family, *options: str) -> list[set[str]]:
    """Who answered at each distance; every probe has to be answered."""
    command = ["traceroute", f"-{family}", "-n", "-q", "2", "-N", "2", "-w", "15,0,0", "-m", "6"]
    done = lab.client("desk").run([*command, *options, LINK[family][1]], timeout_s=60)
    found = _LINE.findall(done.stdout)
    assert [int(number) for number, _ in found] == list(range(1, len(found) + 1)), done.stdout
    assert "*" not in done.stdout, done.stdout
    return [set(_ADDRESS.findall(answers)) for _, answers in found]


def is_whole(lab: Lab, family: Family, found: list[set[str]]) -> bool:
    """Whether it is the path that packets take: the gateway, the internet, the far end."""
    wanted = [*hops(lab, family), {LINK[family][1]}]
    return len(found) == len(wanted) and all(
        seen and seen <= known for seen, known in zip(found, wanted, strict=True)
    )


def is_ended(lab: Lab, family: Family, found: list[set[str]]) -> bool:
    """Whether it is the gateway, and behind it the far end, in whose name it speaks."""
    here, *_ = hops(lab, family)
    return len(found) == 2 and found[0] == here and found[1] == {LINK[family][1]}


def test_by_datagrams(far_lab: Lab, way: str, gateway: GatewayProcess, family: Family) -> None:
    """The TUN sends a datagram on with the hops it has left; listeners do not know them."""
    found = path(far_lab, family)
    assert (is_whole if way == "tun" else is_ended)(far_lab, family, found), found
    assert not [name for name in gateway.counters() if name.startswith("tun_dropped_udp")]


def test_by_echo_requests(far_lab: Lab, gateway: GatewayProcess, family: Family) -> None:
    """By ping sockets, or past the gateway: it makes no difference."""
    found = path(far_lab, family, "-I")
    assert is_whole(far_lab, family, found), found
    assert "icmp_errors_unsent" not in gateway.counters()


def test_by_syns(far_lab: Lab, gateway: GatewayProcess) -> None:
    """What is routed goes all the way; a connection that ends here has one hop more, no others."""
    del gateway
    for family in FAMILIES:
        found = path(far_lab, family, "-T", "-p", ROUTED)
        assert is_whole(far_lab, family, found), found
        found = path(far_lab, family, "-T", "-p", ENDED)
        assert is_ended(far_lab, family, found), found
