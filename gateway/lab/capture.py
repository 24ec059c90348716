"""What takes the default route away from a gateway, and who is caught by it.

A TUN that nobody reads stands for any VPN: a packet that comes out of it went astray, and one
that a gateway would read there is one that it would send again, for ever.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_address
from typing import Final, Self

from gateway.kernel.netns import entered
from gateway.lab.machine import Machine

# <linux/if_tun.h>
_TUNSETIFF: Final = 0x4004_54CA
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_SYN_ALONE: Final = 0x02
_PACKET: Final = 2048
_POLL_S: Final = 0.01
_REQUEST: Final = b"GET /whoami HTTP/1.0\r\n\r\n"


class Tun:
    """A TUN on a machine; it goes when it is closed."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.name = name
        with entered(machine.namespace):
            self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            request = struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI)
            fcntl.ioctl(self._fd, _TUNSETIFF, request)
        machine.run(["ip", "link", "set", name, "up"])

    def caught(self) -> set[str]:
        """Where the connections go whose first packet came out since the last call."""
        found = set()
        with suppress(BlockingIOError):
            while True:
                packet = os.read(self._fd, _PACKET)
                destination = _opens_to(packet)
                if destination is not None:
                    found.add(destination)
        return found

    def close(self) -> None:
        """Remove it."""
        os.close(self._fd)


def _opens_to(packet: bytes) -> str | None:
    """The destination of a TCP SYN (RFC 9293 section 3.1), without IP options or extensions."""
    version = packet[0] >> 4
    at, protocol, address = (
        (20, packet[9], packet[16:20]) if version == 4 else (40, packet[6], packet[24:40])
    )
    if protocol != socket.IPPROTO_TCP or len(packet) < at + 14:
        return None
    return str(ip_address(address)) if packet[at + 13] & 0x3F == _SYN_ALONE else None


class Outcome(StrEnum):
    """What became of a connection. The values stand in the JSON."""

    DIRECT = "arrives"
    LOOP = "loops"
    REFUSED = "refused"
    SILENT = "no answer"


@dataclass(frozen=True, slots=True)
class Seen:
    """The outcome, and what the server saw, or the error."""

    outcome: Outcome
    detail: str = ""


def try_all(
    client: Machine, targets: Mapping[str, str], tun: Tun | None, timeout_s: float = 20.0
) -> dict[str, Seen]:
    """Ask the HTTP server at each target (an address, by name) who asks, all at once.

    Whose SYN comes out of the TUN loops. Every connection is reset at the end, so that
    nobody goes on trying.
    """
    if tun is not None:
        tun.caught()
    flows = {name: Asking(client, host) for name, host in targets.items()}
    seen: dict[str, Seen] = {}
    deadline = time.monotonic() + timeout_s
    try:
        for flow in flows.values():
            flow.connect()
        while len(seen) < len(flows) and time.monotonic() < deadline:
            caught = tun.caught() if tun is not None else set()
            for name, flow in flows.items():
                if name not in seen:
                    result = Seen(Outcome.LOOP) if flow.host in caught else flow.step()
                    if result is not None:
                        seen[name] = result
            time.sleep(_POLL_S)
    finally:
        for flow in flows.values():
            flow.close()
    return {name: seen.get(name, Seen(Outcome.SILENT)) for name in flows}


class Asking:
    """One request, reset at the end."""

    def __init__(self, client: Machine, host: str) -> None:
        self.host = host
        with entered(client.namespace):
            self._sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._sock.setblocking(False)
        self._asked = False
        self._answer = b""

    def connect(self) -> None:
        """Begin."""
        self._sock.connect_ex((self.host, 80))

    def step(self) -> Seen | None:
        """Go on as far as it goes without waiting; what became of it, once it is over."""
        try:
            if not self._asked:
                self._sock.send(_REQUEST)
                self._asked = True
            while part := self._sock.recv(4096):
                self._answer += part
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.ENOTCONN:
                return None  # not connected yet
            return Seen(Outcome.REFUSED, error.strerror or "")
        body = self._answer.partition(b"\r\n\r\n")[2]
        if not body:
            return Seen(Outcome.REFUSED, "ended without an answer")
        return Seen(Outcome.DIRECT, str(json.loads(body)["peer"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Reset it."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._sock.close()


def settle(
    look: Callable[[], dict[str, Seen]],
    expected: Mapping[str, Outcome],
    timeout_s: float = 30.0,
) -> dict[str, Seen]:
    """Look again until all is as expected; a loop that is not expected ends it at once."""
    deadline = time.monotonic() + timeout_s
    while True:
        seen = look()
        wrong = {name for name, outcome in expected.items() if seen[name].outcome is not outcome}
        looped = any(seen[name].outcome is Outcome.LOOP for name in wrong)
        if not wrong or looped or time.monotonic() > deadline:
            return seen
        time.sleep(0.1)
