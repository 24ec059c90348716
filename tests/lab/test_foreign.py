"""Beside other programs' rules, put in place before the gateway starts and while it runs.

Traffic passes, and once the gateway has stopped theirs are as they would be without it.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from traffic import (
    FAMILIES,
    TIMEOUT_S,
    address,
    dial,
    listen,
    peer_seen,
    running,
    target,
    targets,
    upstream,
)

from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.process import LabError, wait_until

#: Published port 8080, a container that is really the host `desk`.
DOCKER = """
{tool} -t nat -N DOCKER
{tool} -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
{tool} -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
{tool} -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
{tool} -t nat -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to-destination {desk}:8088
{tool} -P FORWARD DROP
{tool} -N DOCKER-USER
{tool} -N DOCKER-FORWARD
{tool} -A FORWARD -j DOCKER-USER
{tool} -A FORWARD -j DOCKER-FORWARD
{tool} -A DOCKER-FORWARD -i docker0 ! -o docker0 -j ACCEPT
{tool} -A DOCKER-USER -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{tool} -A DOCKER-USER -i office0 -j ACCEPT
{tool} -A DOCKER-USER -i kids0 -j ACCEPT
"""

#: For each of the two families' tools.
UFW = """
{tool} -P INPUT DROP
{tool} -P FORWARD DROP
{tool} -N ufw-before-input
{tool} -N ufw-before-forward
{tool} -A INPUT -j ufw-before-input
{tool} -A FORWARD -j ufw-before-forward
{tool} -A ufw-before-input -i lo -j ACCEPT
{tool} -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{tool} -A ufw-before-input -m conntrack --ctstate INVALID -j DROP
{tool} -A ufw-before-input -p {icmp} -j ACCEPT
{tool} -A ufw-before-input -p tcp --dport 22 -j ACCEPT
{tool} -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
{tool} -A ufw-before-forward -i office0 -j ACCEPT
{tool} -A ufw-before-forward -i kids0 -j ACCEPT
"""

FIREWALLD = """
nft -f - <<'END'
table inet firewalld {
  chain mangle_PREROUTING {
    type filter hook prerouting priority mangle + 10; policy accept;
  }
  chain nat_PREROUTING {
    type nat hook prerouting priority dstnat + 10; policy accept;
  }
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname "lo" accept
    meta l4proto ipv6-icmp accept
    jump filter_INPUT_ZONES
    ct state invalid drop
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES {
    iifname { "office0", "kids0" } tcp dport 22 accept
  }
  chain filter_FORWARD {
    type filter hook forward priority filter + 10; policy accept;
    ct state { established, related } accept
    iifname { "office0", "kids0" } accept
    reject with icmpx admin-prohibited
  }
}
END
"""

TAILSCALE = """
sysctl -qw net.ipv4.conf.all.src_valid_mark=1
ip link add tailscale0 type veth peer name tailnet
ip link set tailnet up
ip link set tailscale0 up
ip address add 100.64.0.1/32 dev tailscale0
for family in -4 -6; do
  ip $family rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
  ip $family rule add pref 5230 fwmark 0x80000/0xff0000 lookup default
  ip $family rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
  ip $family rule add pref 5270 lookup 52
done
ip route add 100.64.0.0/10 dev tailscale0 table 52
ip route add throw 192.168.0.0/16 table 52
iptables-nft -N ts-input
iptables-nft -I INPUT -j ts-input
iptables-nft -A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
iptables-nft -N ts-forward
iptables-nft -I FORWARD -j ts-forward
iptables-nft -A ts-forward -i tailscale0 -j MARK --set-xmark 0x40000/0xff0000
iptables-nft -A ts-forward -m mark --mark 0x40000/0xff0000 -j ACCEPT
iptables-nft -t nat -N ts-postrouting
iptables-nft -t nat -A POSTROUTING -j ts-postrouting
iptables-nft -t nat -A ts-postrouting -m mark --mark 0x40000/0xff0000 -j MASQUERADE
iptables-nft -t mangle -A PREROUTING -m conntrack --ctstate RELATED,ESTABLISHED \
  -j CONNMARK --restore-mark --nfmask 0xff0000 --ctmask 0xff0000
iptables-nft -t mangle -A OUTPUT -m conntrack --ctstate NEW -m mark ! --mark 0/0xff0000 \
  -j CONNMARK --save-mark --nfmask 0xff0000 --ctmask 0xff0000
"""

#: All traffic of the machine into the tunnel; an outbound that must not go there names its device.
WG_QUICK = """
sysctl -qw net.ipv4.conf.all.src_valid_mark=1
ip link add wg0 type veth peer name tunnel
ip link set tunnel up
ip link set wg0 up
ip address add 10.66.0.2/24 dev wg0
for family in -4 -6; do
  ip $family route add default dev wg0 table 51820
  ip $family rule add not fwmark 51820 table 51820
  ip $family rule add table main suppress_prefixlength 0
done
nft -f - <<'END'
table ip wg-quick-wg0 {
  chain preraw {
    type filter hook prerouting priority raw; policy accept;
    iifname != "wg0" ip daddr 10.66.0.2 fib saddr type != local drop
  }
  chain premangle {
    type filter hook prerouting priority mangle; policy accept;
    meta l4proto udp meta mark set ct mark
  }
  chain postmangle {
    type filter hook postrouting priority mangle; policy accept;
    meta l4proto udp meta mark 0x0000ca6c ct mark set meta mark
  }
}
END
"""


def ufw(variant: str) -> str:
    return "".join(
        UFW.format(tool=f"{tool}-{variant}", icmp=icmp)
        for tool, icmp in (("iptables", "icmp"), ("ip6tables", "ipv6-icmp"))
    )


def docker(variant: str) -> str:
    return DOCKER.format(tool=f"iptables-{variant}", desk="192.168.10.10")


@dataclass(frozen=True)
class Foreign:
    """Another program's rules. ``routes_lan``: whether it lets the LAN out directly."""

    script: str
    routes_lan: bool = True


PROGRAMS = {
    "docker-legacy": Foreign(docker("legacy")),
    "docker-nft": Foreign(docker("nft")),
    "ufw-legacy": Foreign(ufw("legacy")),
    "ufw-nft": Foreign(ufw("nft")),
    "firewalld": Foreign(FIREWALLD),
    "tailscale": Foreign(TAILSCALE),
    "wg-quick": Foreign(WG_QUICK, routes_lan=False),
}


#: Both backends carry TPROXY beside all of them; where NAT or an input firewall is at stake,
#: REDIRECT is tried as well. nftables cannot pass legacy rules that drop input: see `auto` below.
CASES = [
    (program, backend, "tproxy")
    for program in PROGRAMS
    for backend in ("nftables", "iptables")
    if (program, backend) != ("ufw-legacy", "nftables")
] + [
    ("docker-legacy", "iptables", "redirect"),
    ("docker-nft", "nftables", "redirect"),
    ("ufw-legacy", "iptables", "redirect"),
    ("ufw-nft", "nftables", "redirect"),
    ("firewalld", "iptables", "redirect"),
    ("wg-quick", "nftables", "redirect"),
]


def install(machine: Machine, program: str) -> None:
    machine.run(["sh", "-eu"], stdin=PROGRAMS[program].script)


@cache
def alone(program: str) -> dict[str, list[str]]:
    """What is there of a program where nothing of ours has ever been."""
    with Lab() as lab:
        install(lab.router, program)
        return theirs(lab.router)


def theirs(machine: Machine) -> dict[str, list[str]]:
    """What is comparable between two labs.

    Left out: routes, which have addresses that the kernel makes up, and the priorities of ip
    rules, which wg-quick takes as the kernel gives them.
    """
    return {
        name: [line.partition(":\t")[2] if name.startswith("ip rules") else line for line in lines]
        for name, lines in machine.snapshot().sections.items()
        if not name.startswith("routes")
    }


def check(lab: Lab, program: str, timeout_s: float = TIMEOUT_S) -> None:
    """Proxied flows pass, direct ones and published ports too."""
    desk, kid = lab.client("desk"), lab.client("kid")
    for family in FAMILIES:
        seen = peer_seen(desk, target(lab, family), timeout_s=timeout_s)
        assert seen in upstream(lab, "home")
        if PROGRAMS[program].routes_lan:
            assert peer_seen(kid, target(lab, family, "mirror"), timeout_s=timeout_s) == address(
                kid, family
            )
    if program.startswith("docker"):
        published = (address(lab.router, 4, "kids"), 8080)
        with (
            listen(desk, address(desk, 4), 8088) as container,
            dial(kid, *published, timeout_s=timeout_s),
        ):
            container.accept()[0].close()


def config(lab: Lab, program: str) -> dict[str, Any]:
    home = lab.socks("home")
    if program == "wg-quick":
        home["interface"] = "wan0"
    return lab.config(
        {"destination": targets(lab, "web"), "to": "home"},
        {"to": "direct"},
        outbounds={"home": home},
    )


@pytest.mark.parametrize(("program", "backend", "mode"), CASES)
def test_both_work_and_theirs_stays_as_it_is(
    lab: Lab, backend: str, mode: str, program: str
) -> None:
    """Put there while the gateway runs, and then before it starts again."""
    gateway = lab.start_gateway(config(lab, program), backend=backend, mode=mode)
    install(lab.router, program)

    def passes() -> bool:
        with suppress(LabError, OSError):
            check(lab, program, timeout_s=2)
            return True
        return False

    wait_until(passes, "traffic to pass beside rules that came later", timeout_s=60)
    assert gateway.stop() == 0
    assert theirs(lab.router) == alone(program)

    with running(lab, config(lab, program), backend=backend, mode=mode):
        check(lab, program)
    assert theirs(lab.router) == alone(program)


def test_auto_goes_where_legacy_rules_are(lab: Lab) -> None:
    """Legacy rules that drop input cannot be passed from nftables, so iptables is chosen."""
    install(lab.router, "ufw-legacy")
    with running(lab, config(lab, "ufw-legacy")) as gateway:
        assert gateway.control.get("/health")["backend"] == "iptables"
        check(lab, "ufw-legacy")
