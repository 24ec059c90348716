"""Beside other programs' rules: theirs are as they were, while we are there and after."""

from __future__ import annotations

import re
import subprocess
import time

import pytest

from gateway.kernel import host_firewall
from gateway.kernel.applier import Applier
from gateway.marks import Marks
from gateway.plan.model import Backend

from .namespace import Namespace
from .plans import plan

LEGACY_DOCKER = """
iptables-legacy -t nat -N DOCKER
iptables-legacy -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables-legacy -t nat -A DOCKER ! -i docker0 -p tcp --dport 8080 -j DNAT --to 172.17.0.2:80
iptables-legacy -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
iptables-legacy -P FORWARD DROP
iptables-legacy -N DOCKER-USER
iptables-legacy -A FORWARD -j DOCKER-USER
"""

LEGACY_UFW = """
iptables-legacy -P INPUT DROP
iptables-legacy -N ufw-before-input
iptables-legacy -A INPUT -j ufw-before-input
iptables-legacy -A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
ip6tables-legacy -P INPUT DROP
ip6tables-legacy -N ufw6-before-input
ip6tables-legacy -A INPUT -j ufw6-before-input
"""

NFT_FIREWALLD = """
nft -f - <<'RULES'
table inet firewalld {
  chain filter_INPUT {
    type filter hook input priority filter + 10; policy accept;
    ct state { established, related } accept
    jump filter_INPUT_ZONES
    reject with icmpx admin-prohibited
  }
  chain filter_INPUT_ZONES {
    iifname "lan0" tcp dport 22 accept
  }
  chain mangle_PREROUTING {
    type filter hook prerouting priority mangle + 10; policy accept;
  }
}
RULES
"""

NFT_TAILSCALE = """
iptables-nft -N ts-input
iptables-nft -A ts-input -s 100.64.0.0/10 ! -i tailscale0 -j DROP
iptables-nft -I INPUT -j ts-input
ip6tables-nft -N ts-input
ip6tables-nft -I INPUT -j ts-input
for six in -4 -6; do
  ip $six rule add pref 5210 fwmark 0x80000/0xff0000 lookup main
  ip $six rule add pref 5250 fwmark 0x80000/0xff0000 unreachable
  ip $six rule add pref 5270 lookup 52
done
ip route add 100.64.0.0/10 dev wan0 table 52
"""

WG_QUICK = """
ip rule add not fwmark 51820 lookup 51820
ip rule add lookup main suppress_prefixlength 0
ip route add default dev wan0 table 51820
sysctl -qw net.ipv4.conf.all.src_valid_mark=1
nft -f - <<'RULES'
table ip wg-quick-wg0 {
  chain preraw { type filter hook prerouting priority raw; policy accept; ip daddr 10.9.0.2 drop; }
  chain premangle { type filter hook prerouting priority mangle; policy accept; \
meta l4proto udp meta mark set ct mark; }
}
RULES
ipset create foreign hash:net
ipset add foreign 198.51.100.0/24
"""

FOREIGN = {
    "docker": LEGACY_DOCKER,
    "ufw": LEGACY_UFW,
    "firewalld": NFT_FIREWALLD,
    "tailscale": NFT_TAILSCALE,
    "wg-quick": WG_QUICK,
    "all": LEGACY_DOCKER + LEGACY_UFW + NFT_FIREWALLD + NFT_TAILSCALE + WG_QUICK,
}


OURS = re.compile(r"gateway:|GATEWAY_|proto 103|gw_|forwarding|ip_forward")
#: A legacy table that was empty until we came shows its name and its open built-in chains. A
#: forwarding host does not accept redirects, and has an anycast address in each IPv6 subnet.
EMPTY = re.compile(r"$|\*|COMMIT|:\S+ ACCEPT|.*conf/all/accept_redirects|anycast")


def of_others(state: str) -> list[str]:
    """The lines of others: ours carry our tag, our protocol, or stand in our table."""
    state = re.sub(r"table inet gateway \{\n.*?\n\}\n", "", state, flags=re.DOTALL)
    return [n for n in state.splitlines() if not OURS.search(n) and not EMPTY.match(n)]


@pytest.mark.parametrize("other", ["docker", "ufw", "firewalld", "tailscale", "wg-quick"])
def test_rules_of_others_stay_as_they_are(
    ns: Namespace, applier: Applier, backend: Backend, other: str
) -> None:
    ns.sh(FOREIGN[other])
    before = ns.state()
    ns.call(applier.apply, plan(backend))
    assert of_others(ns.state()) == of_others(before)
    ns.call(applier.remove)
    assert ns.state() == before


def test_rules_of_others_that_come_later(ns: Namespace, applier: Applier, backend: Backend) -> None:
    untouched = Namespace()
    try:
        ns.call(applier.apply, plan(backend))
        for namespace in (ns, untouched):
            namespace.sh(FOREIGN["all"])
        assert ns.call(applier.apply, plan(backend)).steps
        assert ns.call(applier.apply, plan(backend)).steps == ()
        ns.call(applier.remove)
        left, expected = (
            n.run("nft", "list", "ruleset")
            + n.run("iptables-legacy", "-S")
            + n.run("iptables-legacy", "-t", "nat", "-S")
            + n.run("ip", "rule")
            for n in (ns, untouched)
        )
        assert left == expected
    finally:
        untouched.close()


def test_an_input_firewall_lets_diverted_packets_in(ns: Namespace, applier: Applier) -> None:
    ns.sh(FOREIGN["firewalld"] + FOREIGN["tailscale"])
    marks = (Marks().divert, Marks().divert_own)
    assert len(ns.call(host_firewall.warnings, marks)) == 2  # ip6 filter INPUT refuses nothing

    ns.call(applier.apply, plan(Backend.NFTABLES))
    assert ns.call(host_firewall.warnings, marks) == ()
    # The program that owns the table can still read and write it.
    listed = ns.run("iptables-nft", "-S", "INPUT").splitlines()
    assert listed[1].startswith("-A INPUT -m mark --mark 0x1000000/0xf000000 -m comment")
    assert listed[3] == "-A INPUT -j ts-input"
    ns.run("iptables-nft", "-A", "INPUT", "-p", "tcp", "--dport", "22", "-j", "ACCEPT")

    # It puts a rule of its own above ours; the next apply moves ours to the top again.
    ns.run("iptables-nft", "-I", "INPUT", "-p", "udp", "-j", "DROP")
    assert ns.call(host_firewall.warnings, marks)
    assert ns.call(applier.apply, plan(Backend.NFTABLES)).steps
    assert ns.call(host_firewall.warnings, marks) == ()

    # `leave` takes them out.
    ns.call(applier.apply, plan(Backend.NFTABLES, host_firewall="leave"))
    assert "gateway" not in ns.run("iptables-nft", "-S", "INPUT")


def test_a_table_that_only_its_owner_may_change_is_reported(
    ns: Namespace, applier: Applier
) -> None:
    with ns.call(_nft_shell) as owner:
        assert owner.stdin
        owner.stdin.write("add table inet locked { flags owner; }\n")
        owner.stdin.write(
            "add chain inet locked in { type filter hook input priority 0; policy drop; }\n"
        )
        owner.stdin.flush()
        deadline = time.monotonic() + 20
        while "chain in" not in ns.run("nft", "list", "ruleset"):
            assert time.monotonic() < deadline
        report = ns.call(applier.apply, plan(Backend.NFTABLES))
        assert [warning for warning in report.warnings if "chain inet locked in " in warning]
        ns.call(applier.remove)


def _nft_shell() -> subprocess.Popen[str]:
    return subprocess.Popen(["nft", "-i"], stdin=subprocess.PIPE, text=True)
