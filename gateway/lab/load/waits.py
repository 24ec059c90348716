"""A client that asks and waits, again and again, and remembers the longest wait.

``python -m gateway.lab.load.waits COUNTERS TARGET`` keeps one TCP connection to the echo
service of ``gateway.lab.load.server`` until it is told to stop. Whoever reads the counters may
set them to zero.
"""

from __future__ import annotations

import argparse
import os
import socket
import time
from pathlib import Path
from typing import Final

from gateway.lab.load import server
from gateway.lab.load.counters import Counters

#: Answers; the longest that one took, in microseconds; those that took longer than ``LONG_S``.
WAITS: Final = ("answers", "longest_us", "long")
ANSWERS, LONGEST_US, LONG = range(3)
LONG_S: Final = 0.02
#: Between an answer and the next question.
PAUSE_S: Final = 0.001
#: What looks on must not be what waits for a processor (nice(2); as root).
_NICENESS: Final = -10
_QUESTION: Final = bytes(64)


def ask(counted: memoryview, target: str) -> None:
    """Until killed. Raises ``OSError`` where the connection ends."""
    with socket.create_connection((target, server.ECHO)) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            began_s = time.perf_counter()
            sock.sendall(_QUESTION)
            left = len(_QUESTION)
            while left:
                answer = sock.recv(left)
                if not answer:
                    raise ConnectionError("the connection has ended")
                left -= len(answer)
            waited_s = time.perf_counter() - began_s
            counted[LONGEST_US] = max(counted[LONGEST_US], int(waited_s * 1e6))
            counted[LONG] += waited_s > LONG_S
            counted[ANSWERS] += 1
            time.sleep(PAUSE_S)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("counters", type=Path)
    parser.add_argument("target")
    arguments = parser.parse_args()
    os.nice(_NICENESS)
    ask(Counters(arguments.counters, WAITS).values, arguments.target)


if __name__ == "__main__":
    main()
