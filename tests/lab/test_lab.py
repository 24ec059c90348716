"""The lab itself: what other lab tests stand on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from traffic import labs_of

from gateway.lab import http_server, namespaces, serve
from gateway.lab.gateway_process import ENVIRONMENT
from gateway.lab.lab import Lab
from gateway.lab.process import LabError
from gateway.lab.stream_servers import BANNER, HALF_CLOSE_BYTES

FAMILIES = [4, 6]


def forward(lab: Lab) -> None:
    lab.router.sysctl("net.ipv4.ip_forward", "1")
    lab.router.sysctl("net.ipv6.conf.all.forwarding", "1")


def target(lab: Lab, family: int, name: str = "web") -> str:
    pair = lab.topology.targets[name]
    return pair.ipv4 if family == 4 else f"[{pair.ipv6}]"


def talk(lab: Lab, port: int, send: bytes) -> bytes:
    """What a server answers to a client that sends, ends its direction, then reads to the end."""
    program = (
        "import socket, sys\n"
        f"s = socket.create_connection(({lab.topology.targets['web'].ipv4!r}, {port}), 20)\n"
        f"s.sendall({send!r}); s.shutdown(socket.SHUT_WR)\n"
        "while data := s.recv(65536): sys.stdout.buffer.write(data)\n"
    )
    command = lab.client("kid").inside(sys.executable, "-c", program)
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("client", ["kid", "desk"])
def test_forwarded_clients_reach_the_internet_by_their_own_address(
    module_lab: Lab, client: str, family: int
) -> None:
    forward(module_lab)
    machine = module_lab.client(client)
    url = f"http://{target(module_lab, family)}/whoami"
    seen = json.loads(machine.run(["curl", "-sS", "-m", "20", url]).stdout)
    assert seen["peer"] in {str(a.ip) for a in machine.spec.links[0].addresses}


def test_without_forwarding_nothing_passes(lab: Lab) -> None:
    url = f"http://{target(lab, 4)}/whoami"
    done = lab.client("kid").run(["curl", "-sS", "-m", "1", url], check=False)
    assert done.returncode != 0


def test_downloads_and_uploads_have_known_digests(module_lab: Lab) -> None:
    forward(module_lab)
    size = 3_000_001
    base = f"http://{target(module_lab, 6)}"
    kid = module_lab.client("kid")
    path = module_lab.directory / "download"
    kid.run(["curl", "-sSgf", "-o", str(path), f"{base}/bytes/{size}"])
    assert hashlib.sha256(path.read_bytes()).hexdigest() == http_server.digest(size)
    sent = json.loads(kid.run(["curl", "-sSgfT", str(path), f"{base}/upload"]).stdout)
    assert sent == {"sha256": http_server.digest(size), "size": size}


def test_stream_servers_have_their_manners(module_lab: Lab) -> None:
    forward(module_lab)
    assert talk(module_lab, serve.ECHO_PORT, b"hello") == b"hello"
    assert talk(module_lab, serve.BANNER_PORT, b"me\n") == BANNER + b"me\n"
    assert len(talk(module_lab, serve.HALF_CLOSE_PORT, b"ask")) == HALF_CLOSE_BYTES


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("upstream", ["home", "work"])
def test_embedded_socks_servers(module_lab: Lab, upstream: str, family: int) -> None:
    server = module_lab.topology.upstreams[upstream]
    user = f"{server.username}:{server.password}@" if server.username else ""
    proxy = f"socks5://{user}{server.addresses.ipv4}:{server.port}"
    url = f"http://{target(module_lab, family)}/whoami"
    seen = json.loads(module_lab.router.run(["curl", "-sSgx", proxy, url]).stdout)
    assert seen["peer"] in set(server.addresses)
    assert {"host": target(module_lab, family).strip("[]"), "port": 80}.items() <= (
        module_lab.socks_records("connect")[-1].items()
    )


def test_socks_server_refuses_a_wrong_password_and_reports_a_closed_port(module_lab: Lab) -> None:
    work = module_lab.topology.upstreams["work"]
    address = f"{work.addresses.ipv4}:{work.port}"
    run = module_lab.router.run
    url = f"http://{target(module_lab, 4)}:1/"
    # curl's proxy error 97; the reply's code is in its message.
    wrong = run(["curl", "-sSx", f"socks5://me:wrong@{address}", url], check=False)
    assert (wrong.returncode, "rejected" in wrong.stderr) == (97, True)
    closed = run(["curl", "-sSx", f"socks5://me:secret@{address}", url], check=False)
    assert (closed.returncode, "(5)" in closed.stderr) == (97, True)


@pytest.mark.parametrize("kind", ["microsocks", "danted", "sing-box", "ssh"])
def test_real_socks_servers(lab: Lab, kind: str) -> None:
    lab.start_upstream(kind)
    spare = lab.topology.upstreams["spare"]
    proxy = f"socks5://{spare.addresses.ipv4}:{spare.port}"
    for family in FAMILIES:
        url = f"http://{target(lab, family)}/bytes/100000"
        done = lab.router.run(
            ["curl", "-sSgfx", proxy, "-o", "/dev/null", "-w", "%{size_download}", url]
        )
        assert done.stdout == "100000"


def test_snapshot_sees_every_kind_of_change(bare_lab: Lab) -> None:
    router = bare_lab.router
    changes = {
        "nftables": "nft add table inet foreign",
        "iptables (legacy, IPv4)": "iptables-legacy -t mangle -A PREROUTING -j ACCEPT",
        "iptables (legacy, IPv6)": "ip6tables-legacy -N FOREIGN",
        "ipset": "ipset create foreign hash:net",
        "ip rules (IPv4)": "ip rule add pref 5 lookup 7",
        "ip rules (IPv6)": "ip -6 rule add pref 5 lookup 7",
        "routes (IPv4)": "ip route add local default dev lo table 9",
        "routes (IPv6)": "ip -6 route add local default dev lo table 9",
        "sysctls": "sysctl -w net.ipv4.conf.wan0.rp_filter=1",
    }
    before = router.snapshot()
    router.assert_unchanged(before)
    for section, command in changes.items():
        router.run(command.split())
        with pytest.raises(AssertionError) as raised:
            router.assert_unchanged(before)
        assert f"--- {section} before" in str(raised.value)


def test_looking_at_a_legacy_table_is_no_change(bare_lab: Lab) -> None:
    before = bare_lab.router.snapshot()
    bare_lab.router.run(["iptables-legacy", "-t", "nat", "-L"])
    bare_lab.router.assert_unchanged(before)


def test_labs_stand_side_by_side_and_leave_nothing() -> None:
    with Lab() as one, Lab() as two:
        names = [m.namespace for lab in (one, two) for m in lab.machines.values()]
        assert len(set(names)) == len(names)
        assert set(names) <= set(namespaces.listed())
        process = one.internet.start("sleep", ["sleep", "1000"])
    assert not set(names) & set(namespaces.listed())
    assert not process.alive
    assert not one.directory.exists()


def test_sweep_removes_what_a_killed_owner_left() -> None:
    program = (
        "import os, signal\n"
        "from gateway.lab.lab import Lab\n"
        "lab = Lab().__enter__()\n"
        "pid = lab.internet.start('sleep', ['sleep', '1000']).pid\n"
        "print(pid, *(m.namespace for m in lab.machines.values()), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **ENVIRONMENT},
    )
    pid, *left = owner.communicate(timeout=60)[0].split()
    assert len(left) == 4
    with Lab() as mine:
        # Whatever else runs on this machine may sweep, too: all that counts is what is left.
        Lab.sweep()
        assert not {m.namespace for m in mine.machines.values()} - set(namespaces.listed())
    assert not labs_of(owner.pid)
    # A dead process whose new parent has not collected it yet has no command line.
    with suppress(FileNotFoundError, ProcessLookupError):
        assert not Path(f"/proc/{pid}/cmdline").read_bytes()


def test_a_process_that_ends_early_is_reported_with_its_last_words(bare_lab: Lab) -> None:
    with pytest.raises(LabError, match="cannot access"):
        bare_lab.internet.start_listening("ls", ["ls", "/nowhere"], ("", 1))


def test_a_failing_command_says_where_and_why(bare_lab: Lab) -> None:
    with pytest.raises(LabError, match=r"kid: ls /nowhere failed \(2\): .*cannot access"):
        bare_lab.client("kid").run(["ls", "/nowhere"])
