"""Real requests of the lab's clients, and what both ends saw of them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.flow import Endpoint
from gateway.lab import http_server
from gateway.lab.machine import Machine
from gateway.lab.topology import FamilyNumber, Pair

TIMEOUT_S = 20
#: Field by field: ``%{json}`` would do, but curl 8.14 spends ten seconds on making it where
#: there is no resolver.
_WRITE_OUT = (
    r'\n{"local_ip": "%{local_ip}", "local_port": %{local_port},'
    r' "size_download": %{size_download}, "time_total": %{time_total}}\n'
)


@dataclass(frozen=True, slots=True)
class Fetch:
    """One connection: a download, and the server's answer to ``/whoami``.

    ``seen`` is the client's address as the server saw it, empty where nothing came back;
    ``error`` is then curl's reason. ``intact``: the content was what the server has.
    """

    client: Endpoint
    destination: Endpoint
    seen: str
    downloaded_bytes: int
    duration_s: float
    intact: bool
    error: str


def fetch(
    machine: Machine,
    target: Pair,
    family: FamilyNumber,
    size: int,
    *,
    directory: Path,
    port: int = 80,
) -> Fetch:
    """Download ``size`` bytes with curl, then ask ``/whoami`` on the same connection."""
    destination = Endpoint(target.of(family), port)
    body = directory / f"{machine.spec.name}.body"
    done = machine.run(
        [
            *("curl", "-sSg", "--fail-early", "--max-time", str(TIMEOUT_S)),
            *("-w", _WRITE_OUT),
            *("-o", str(body), f"http://{destination}/bytes/{size}"),
            *("-o", "-", f"http://{destination}/whoami"),
        ],
        check=False,
        timeout_s=2 * TIMEOUT_S,
    )
    lines: list[dict[str, Any]] = [
        json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")
    ]
    transfers = [line for line in lines if "time_total" in line]
    first = transfers[0]
    # curl knows no local address of a connection that was refused.
    source = first["local_ip"] or machine.spec.links[0].pair.of(family)
    return Fetch(
        client=Endpoint(source, max(0, int(first["local_port"]))),
        destination=destination,
        seen=next((line["peer"] for line in lines if "peer" in line), ""),
        downloaded_bytes=int(first["size_download"]),
        duration_s=sum(float(transfer["time_total"]) for transfer in transfers),
        intact=done.returncode == 0
        and hashlib.sha256(body.read_bytes()).hexdigest() == http_server.digest(size),
        error=done.stderr.strip() if done.returncode else "",
    )
