"""A socket that is bound to a device whose default route has gone."""

from __future__ import annotations

import errno
import socket

from gateway.config.schema import Config
from gateway.kernel.applier import Applier
from gateway.kernel.probe import probe_host
from gateway.marks import Marks
from gateway.plan.build import build_plan
from gateway.plan.model import Backend
from gateway.policy.compile import compile_policy

from .namespace import Namespace

FAR, NEAR = "198.51.100.5", "203.0.113.9"


def send(
    ns: Namespace,
    host: str,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    patience_s: float = 20,
) -> str:
    """As an outbound of the strategy does it: the error, or that none came in so long."""

    def begin() -> str:
        with socket.socket(socket.AF_INET, kind) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, Marks().bypass.value)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"wan0")
            sock.settimeout(patience_s)
            try:
                sock.connect((host, 1080))
                sock.send(b"x")
            except TimeoutError:
                return "no answer"
            except OSError as error:
                return errno.errorcode[error.errno or 0]
            return "sent"

    return ns.call(begin)


def unanswered(ns: Namespace, host: str) -> bool:
    """Whether the kernel waits for an answer."""
    return send(ns, host, patience_s=0.3) == "no answer"


def asked_for(ns: Namespace, host: str) -> bool:
    """Whether the kernel has asked for the host itself on the link."""
    return host in ns.run("ip", "neighbour", "show", "dev", "wan0")


def test_the_kernel_refuses_what_it_would_look_for_on_the_link(
    ns: Namespace, applier: Applier, backend: Backend
) -> None:
    """At once, as long as nobody has seen yet that the route is gone; neighbours are reached."""
    home = {"type": "socks5", "server": FAR, "interface": "wan0"}
    config = Config.model_validate(
        {"lan": {"interfaces": ["lan0"]}, "outbounds": {"home": home}, "rules": [{"to": "home"}]}
    )
    host = ns.call(probe_host, backend.value)
    plan = build_plan(config, compile_policy(config, {}), host, backend)

    # Else whom nobody answers for is unreachable after three seconds.
    ns.run("sysctl", "-qw", "net.ipv4.neigh.wan0.mcast_solicit=30")
    ns.run("ip", "route", "del", "default")
    assert unanswered(ns, FAR)
    assert asked_for(ns, FAR)
    ns.run("ip", "neighbour", "flush", "dev", "wan0")
    assert not asked_for(ns, FAR)

    ns.call(applier.apply, plan)
    assert send(ns, FAR) == "EHOSTUNREACH"
    assert send(ns, FAR, socket.SOCK_DGRAM) == "EPERM"
    assert not asked_for(ns, FAR)
    assert unanswered(ns, NEAR)
    assert asked_for(ns, NEAR)
    ns.run("ip", "route", "add", "default", "via", "203.0.113.1")
    assert unanswered(ns, FAR)
    assert asked_for(ns, "203.0.113.1")
    ns.call(applier.remove)
