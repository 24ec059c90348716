"""A client whose every datagram begins a new flow, as many as it can send.

``python -m gateway.lab.load.new_flows COUNTERS TARGET`` runs until it is told to stop.
"""

from __future__ import annotations

import argparse
import socket
from itertools import count
from pathlib import Path
from typing import Final

from gateway.lab.load.counters import Counters

#: What it counts.
SENT: Final = ("sent",)
#: What a small request has.
_DATAGRAM: Final = bytes(32)
_PORTS: Final = range(1024, 65536)
_FIRST_SOURCE_PORT: Final = 2000
_BATCH: Final = 64


def flood(counted: memoryview, target: str) -> None:
    """One source port after the other, and from each a datagram to every port."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    for source_port in count(_FIRST_SOURCE_PORT):
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.bind(("", source_port))
            send = sock.sendto
            for first in range(_PORTS.start, _PORTS.stop, _BATCH):
                for port in range(first, first + _BATCH):
                    send(_DATAGRAM, (target, port))
                counted[0] += _BATCH


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("counters", type=Path)
    parser.add_argument("target")
    arguments = parser.parse_args()
    flood(Counters(arguments.counters, SENT).values, arguments.target)


if __name__ == "__main__":
    main()
