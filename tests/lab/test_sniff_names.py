"""Rules by name through the real gateway: what a client says first decides where its flow goes."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from traffic import (
    FAMILIES,
    Family,
    curl,
    dial,
    flow_of,
    read,
    running,
    target,
    upstream,
    wait_counter,
)

from gateway.lab import serve
from gateway.lab.certificate import Certificate
from gateway.lab.gateway_process import GatewayProcess
from gateway.lab.lab import Lab
from gateway.lab.process import wait_until
from gateway.lab.stream_servers import BANNER
from gateway.lab.topology import DOMAIN

#: curl(1): the connection was reset, while reading or while shaking hands.
CURL_RESET = (35, 56)
SMTP_PORT = 25

RULES: list[dict[str, Any]] = [
    {"domain": f"+.blocked.{DOMAIN}", "to": "reject"},
    {"domain": [f"video.{DOMAIN}", "keyword:film"], "to": "work"},
    {"sniffed": "ssh", "to": "direct"},
    {"to": "home"},
]


@pytest.fixture(
    scope="module", params=[("nftables", "tproxy"), ("iptables", "redirect")], ids="-".join
)
def diversion(request: pytest.FixtureRequest) -> dict[str, str]:
    """A firewall backend and a way of diverting."""
    return dict(zip(("backend", "mode"), request.param, strict=True))


#: As long as may be: a client that is held up on a busy machine is still to be heard.
PATIENT: dict[str, Any] = {"timeout": 10}


def settings(
    lab: Lab, diversion: dict[str, str], *rules: dict[str, Any], **sniff: Any
) -> dict[str, Any]:
    """A configuration with these rules and ``sniff`` settings."""
    inbound = {"backend": diversion["backend"], "tcp": diversion["mode"], "udp": "off"}
    return lab.config(*rules) | {"inbound": inbound, "sniff": PATIENT | sniff}


@pytest.fixture(scope="module")
def gateway(module_lab: Lab, diversion: dict[str, str]) -> Iterator[GatewayProcess]:
    with running(module_lab, settings(module_lab, diversion, *RULES)) as it:
        yield it


def ask(lab: Lab, family: Family, scheme: str, name: str) -> tuple[int, dict[str, Any], int]:
    """Ask the web server by name: curl's exit status, the answer, and the client's port."""
    port = serve.HTTPS_PORT if scheme == "https" else serve.HTTP_PORT
    host = target(lab, family)
    done = curl(
        lab.client("desk"),
        f"{scheme}://{name}/whoami",
        *(
            "--resolve",
            f"{name}:{port}:{host}",
            "--cacert",
            str(Certificate.within(lab.directory).chain),
        ),
        *("-w", "%{stderr}%{local_port}"),
    )
    return done.returncode, json.loads(done.stdout or "{}"), int(done.stderr.split()[-1])


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("label", "way"), [("video", "work"), ("myfilms", "work"), ("other", "home")]
)
def test_the_name_decides(
    module_lab: Lab, gateway: GatewayProcess, family: Family, scheme: str, label: str, way: str
) -> None:
    """All names are at one address."""
    status, answer, port = ask(module_lab, family, scheme, f"{label}.{DOMAIN}")
    assert status == 0
    assert answer["peer"] in upstream(module_lab, way)
    flow = flow_of(gateway, port)
    assert (flow["name"], flow["outbound"]) == (f"{label}.{DOMAIN}", way)
    assert flow["sniffed"] == {"http": "http", "https": "tls"}[scheme]
    logged = (f"client={flow['client']} ", f"name={label}.{DOMAIN} ")
    wait_until(
        lambda: any(all(word in line for word in logged) for line in gateway.log),
        "the flow's line in the log",
    )


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_rejected_name_is_a_reset(
    module_lab: Lab, gateway: GatewayProcess, family: Family, scheme: str
) -> None:
    refused = gateway.counters().get("closed_rejected", 0)
    status, _, _ = ask(module_lab, family, scheme, f"blocked.{DOMAIN}")
    assert status in CURL_RESET
    wait_counter(gateway, "closed_rejected", refused + 1)


class Trickle:
    """A TLS client whose every segment has three bytes."""

    def __init__(self, sock: socket.socket, certificate: Certificate, name: str) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=str(certificate.chain))
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=name)

    def _do(self, work: Any, *arguments: Any) -> Any:
        while True:
            try:
                done = work(*arguments)
            except ssl.SSLWantReadError:
                done = None
            data = self._out.read()
            for at in range(0, len(data), 3):
                self._sock.send(data[at : at + 3])
            if done is not None:
                return done
            self._in.write(self._sock.recv(1 << 16))

    def get(self, path: str) -> bytes:
        """The answer to a request."""
        self._do(lambda: self._tls.do_handshake() or True)
        self._do(
            self._tls.write, f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b""
        while b"}" not in answer:
            answer += self._do(self._tls.read)
        return answer


def test_a_hello_in_many_small_segments(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """Nothing of it is lost or changed: the handshake succeeds, with the name's certificate."""
    with dial(module_lab.client("kid"), target(module_lab, family), serve.HTTPS_PORT) as sock:
        port = sock.getsockname()[1]
        answer = Trickle(sock, Certificate.within(module_lab.directory), f"video.{DOMAIN}").get(
            "/whoami"
        )
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["peer"] in upstream(module_lab, "work")
    assert flow_of(gateway, port)["name"] == f"video.{DOMAIN}"


def test_a_client_that_says_who_it_is(
    module_lab: Lab, gateway: GatewayProcess, family: Family
) -> None:
    """SSH: no name, but a protocol."""
    with dial(module_lab.client("desk"), target(module_lab, family), serve.BANNER_PORT) as client:
        client.sendall(b"SSH-2.0-test\r\n")
        assert read(client, len(BANNER) + 14) == BANNER + b"SSH-2.0-test\r\n"
        port = client.getsockname()[1]
    flow = flow_of(gateway, port)
    assert (flow["sniffed"], flow["name"], flow["outbound"]) == ("ssh", "", "direct")


@pytest.fixture(scope="module")
def mail(module_lab: Lab) -> int:
    """A port whose servers speak first: the banner server answers there as well."""
    rule = f"tcp dport {SMTP_PORT} redirect to :{serve.BANNER_PORT}"
    chain = f"chain prerouting {{\ntype nat hook prerouting priority -100\n{rule}\n}}"
    output = f"chain output {{\ntype nat hook output priority -100\n{rule}\n}}"
    module_lab.internet.run(
        ["nft", "-f", "-"], stdin=f"table inet mail {{\n{chain}\n{output}\n}}\n"
    )
    return SMTP_PORT


def test_a_client_that_waits_for_its_server(
    module_lab: Lab,
    gateway: GatewayProcess,
    diversion: dict[str, str],
    family: Family,
    mail: int,
) -> None:
    """It is decided without a name when the time is over; where that is usual, at once."""
    gateway.reload(settings(module_lab, diversion, *RULES, timeout=0.3))
    timeouts = gateway.counters().get("sniff_timeout", 0)
    for port, waited in ((mail, 0), (serve.BANNER_PORT, 1)):
        with dial(module_lab.client("desk"), target(module_lab, family), port) as client:
            assert read(client, len(BANNER)) == BANNER
            own_port = client.getsockname()[1]
        flow = flow_of(gateway, own_port)
        assert (flow["sniffed"], flow["outbound"]) == ("", "home")
        assert gateway.counters().get("sniff_timeout", 0) == timeouts + waited
    gateway.reload(settings(module_lab, diversion, *RULES))


def test_the_server_resolves_the_name(
    module_lab: Lab, gateway: GatewayProcess, diversion: dict[str, str]
) -> None:
    """`override: target`: it is asked by name; the client had another address, even of IPv6.

    No rule needs the name. A rule with `sniff: off` keeps the address.
    """
    lab, name = module_lab, f"mirror.{DOMAIN}"
    rules = ({"port": serve.HTTPS_PORT, "sniff": False, "to": "work"}, {"to": "home"})
    gateway.reload(settings(lab, diversion, *rules, override="target"))
    for family in FAMILIES:
        status, answer, port = ask(lab, family, "http", name)
        assert status == 0
        assert answer["local"] == lab.topology.targets["mirror"].ipv4
        request = lab.socks_records()[-1]
        assert (request["host"], request["port"]) == (name, serve.HTTP_PORT)
        flow = flow_of(gateway, port)
        assert flow["name"] == name
        assert flow["destination"].startswith(("198.51.100.10:", "[2001:db8:51::10]:"))

        status, _, port = ask(lab, family, "https", name)
        assert status == 0
        assert lab.socks_records()[-1]["host"] == target(lab, family)
        assert flow_of(gateway, port)["sniffed"] == ""
    gateway.reload(settings(lab, diversion, *RULES))
