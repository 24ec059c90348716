"""Other transparent proxies, set up on the lab's router as their manuals say, for comparison.

None is required: what is not installed is left out. Each takes all TCP that comes from the
LAN over IPv4 to one SOCKS5 server, and logs only what is wrong.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal

from gateway.lab.machine import Machine
from gateway.lab.process import LabError, Process
from gateway.lab.upstreams import sing_box_path

PORT: Final = 7894
#: The device of peers that have one.
TUN: Final = "peer0"
_MARK: Final = 1
_TABLE: Final = 100

# Without a listener TPROXY lets a packet go on as if there were no rule: hence the drop.
_NFT: Final = {
    "tproxy": """
table ip peer {{
    chain prerouting {{
        type filter hook prerouting priority mangle
        iifname {{ {interfaces} }} meta l4proto {protocol} tproxy to 127.0.0.1:{port} \
meta mark set {mark} accept
        iifname {{ {interfaces} }} meta l4proto {protocol} drop
    }}
}}
""",
    "redirect": """
table ip peer {{
    chain prerouting {{
        type nat hook prerouting priority dstnat
        iifname {{ {interfaces} }} meta l4proto tcp redirect to :{port}
    }}
}}
""",
}

_REDSOCKS: Final = """\
base {{ log_info = off; log = stderr; daemon = off; redirector = iptables;
    rlimit_nofile = {descriptors}; }}
redsocks {{ local_ip = 0.0.0.0; local_port = {port}; type = socks5; ip = {server};
    port = {server_port}; listenq = 1024; }}
"""


@dataclass(frozen=True, slots=True)
class Upstream:
    """The SOCKS5 server that a peer is to use, without authentication."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Peer:
    """A program: where it is, how it is started, and how traffic is brought to it.

    ``find`` returns None where it is not installed. ``command`` may write files into the
    directory that it is given.
    """

    name: str
    find: Callable[[], str | None]
    command: Callable[[str, Upstream, Path], list[str]]
    diversion: Literal["tproxy", "redirect", "tun"]
    protocol: Literal["tcp", "udp"] = "tcp"

    def start(self, router: Machine, upstream: Upstream, directory: Path) -> Process:
        """Run it on ``router``, then divert what comes in from the LAN.

        Raises ``LabError`` when it does not come up.
        """
        program = self.find()
        if program is None:
            raise LabError(f"{self.name} is not installed")
        command = self.command(program, upstream, directory)
        if self.diversion == "tun":
            return self._start_tun(router, command)
        if self.protocol == "tcp":
            process = router.start_listening(self.name, command, ("", PORT))
        else:
            process = router.start(self.name, command)
            bound = ["ss", "-Hlun", "-N", router.namespace, f"sport = :{PORT}"]
            process.wait_until(lambda: bool(_output(bound)), f"{self.name} to listen")
        lan = ", ".join(link.name for link in router.spec.links if link.network != "wan")
        rules = _NFT[self.diversion].format(
            interfaces=lan, port=PORT, mark=_MARK, protocol=self.protocol
        )
        router.run(["nft", "-f", "-"], stdin=rules)
        if self.diversion == "tproxy":
            router.run(["ip", "rule", "add", "fwmark", str(_MARK), "lookup", str(_TABLE)])
            route = ["local", "default", "dev", "lo", "table", str(_TABLE)]
            router.run(["ip", "route", "add", *route])
        return process

    def _start_tun(self, router: Machine, command: list[str]) -> Process:
        """What comes in from the LAN is routed into the device that it makes."""
        process = router.start(self.name, command)
        process.wait_until(
            lambda: TUN in router.run(["ip", "-br", "link"]).stdout, f"{self.name}'s device"
        )
        router.sysctl("net.ipv4.ip_forward", "1")
        for link in router.spec.links:
            if link.network != "wan":
                router.run(["ip", "rule", "add", "iif", link.name, "lookup", str(_TABLE)])
        router.run(["ip", "route", "add", "default", "dev", TUN, "table", str(_TABLE)])
        return process


def _redsocks(program: str, upstream: Upstream, directory: Path) -> list[str]:
    config = directory / "redsocks.conf"
    config.write_text(
        _REDSOCKS.format(
            port=PORT,
            server=upstream.host,
            server_port=upstream.port,
            descriptors=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        ),
        encoding="utf-8",
    )
    return [program, "-c", str(config), "-p", str(directory / "redsocks.pid")]


def _sing_box(
    program: str,
    upstream: Upstream,
    directory: Path,
    network: Literal["tcp", "udp"] = "tcp",
) -> list[str]:
    inbound = {"type": "tproxy", "listen": "127.0.0.1", "listen_port": PORT, "network": network}
    outbound = {"type": "socks", "server": upstream.host, "server_port": upstream.port}
    settings = {"log": {"level": "warn"}, "inbounds": [inbound], "outbounds": [outbound]}
    config = _write_json(directory / "sing-box.json", settings)
    return [program, "run", "-c", config, "-D", str(directory)]


def _sing_box_tun(program: str, upstream: Upstream, directory: Path, stack: str) -> list[str]:
    inbound = {
        "type": "tun",
        "interface_name": TUN,
        "address": ["172.19.0.1/30"],
        # Beyond 49 KiB it does without super-packets, and is several times slower.
        "mtu": 1500,
        "auto_route": False,
        "stack": stack,
    }
    outbound = {"type": "socks", "server": upstream.host, "server_port": upstream.port}
    settings = {"log": {"level": "warn"}, "inbounds": [inbound], "outbounds": [outbound]}
    config = _write_json(directory / "sing-box.json", settings)
    return [program, "run", "-c", config, "-D", str(directory)]


def _v2ray(program: str, upstream: Upstream, directory: Path) -> list[str]:
    inbound = {
        "protocol": "dokodemo-door",
        "listen": "127.0.0.1",
        "port": PORT,
        "settings": {"network": "tcp", "followRedirect": True},
        "streamSettings": {"sockopt": {"tproxy": "tproxy"}},
    }
    server = {"address": upstream.host, "port": upstream.port}
    outbound = {"protocol": "socks", "settings": {"servers": [server]}}
    settings = {
        "log": {"loglevel": "warning"},
        "inbounds": [inbound],
        "outbounds": [outbound],
        # Else a flow stays for seconds after the server has ended it.
        "policy": {"levels": {"0": {"uplinkOnly": 0, "downlinkOnly": 0}}},
    }
    return [program, "-config", _write_json(directory / "v2ray.json", settings)]


def _ipt2socks(program: str, upstream: Upstream, _: Path) -> list[str]:
    server = ["-s", upstream.host, "-p", str(upstream.port)]
    return [program, *server, "-b", "127.0.0.1", "-l", str(PORT), "-T", "-4"]


def _pproxy(program: str, upstream: Upstream, _: Path) -> list[str]:
    server = f"socks5://{upstream.host}:{upstream.port}"
    return [program, "-l", f"redir://0.0.0.0:{PORT}", "-r", server]


def _write_json(path: Path, settings: object) -> str:
    path.write_text(json.dumps(settings), encoding="utf-8")
    return str(path)


def _on_path(name: str) -> Callable[[], str | None]:
    return lambda: shutil.which(name)


def _find_sing_box() -> str | None:
    """From the path, or from the Python package that carries it."""
    try:
        return shutil.which("sing-box") or str(sing_box_path())
    except LabError:
        return None


PEERS: Final = (
    Peer("redsocks", _on_path("redsocks"), _redsocks, "redirect"),
    Peer("sing-box", _find_sing_box, _sing_box, "tproxy"),
    Peer("ipt2socks", _on_path("ipt2socks"), _ipt2socks, "tproxy"),
    Peer("v2ray", _on_path("v2ray"), _v2ray, "tproxy"),
    Peer("pproxy", _on_path("pproxy"), _pproxy, "redirect"),
)


def missing() -> tuple[str, ...]:
    """The names of those that it has not."""
    return tuple(peer.name for peer in PEERS if peer.find() is None)


def installed() -> tuple[Peer, ...]:
    """The peers that this machine has."""
    return tuple(peer for peer in PEERS if peer.find() is not None)


def udp() -> tuple[Peer, ...]:
    """Those that carry UDP to a SOCKS server."""
    sing_box = partial(_sing_box, network="udp")
    return (Peer("sing-box", _find_sing_box, sing_box, "tproxy", "udp"),)


def tun() -> tuple[Peer, ...]:
    """Those that take packets from a device: sing-box, with each of its stacks."""
    return tuple(
        Peer(f"sing-box ({stack})", _find_sing_box, partial(_sing_box_tun, stack=stack), "tun")
        for stack in ("system", "gvisor", "mixed")
    )


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
