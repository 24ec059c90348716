"""``gateway bench tun``: TCP that is taken from a TUN device, beside sing-box's stacks."""

from __future__ import annotations

from gateway.lab import peers
from gateway.lab.bench.bulk import bulk
from gateway.lab.bench.candidates import forwarding, other, this_gateway
from gateway.lab.bench.suite import Suite
from gateway.lab.bench.tcp import EXCHANGE


def suite() -> Suite:
    """Compare with sing-box, and with this gateway without the device."""
    found = [other(peer) for peer in peers.tun() if peer.find() is not None]
    return Suite(
        "tun",
        (forwarding(), this_gateway("tun"), this_gateway("tun", workers=1), this_gateway(), *found),
        (
            bulk("upload", 1),
            bulk("download", 1),
            bulk("upload", 8),
            bulk("download", 8),
            EXCHANGE,
        ),
        baseline="gateway (tun)",
        missing=tuple(peer.name for peer in peers.tun() if peer.find() is None),
    )
