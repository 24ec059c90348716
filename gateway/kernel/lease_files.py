"""The DHCP server's lease files, read again whenever they have changed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from gateway.policy.leases import Lease, read_leases

#: Where Debian, Fedora and OpenWrt have dnsmasq, ISC dhcpd and Kea write them.
USUAL_PLACES: Final = (
    "/var/lib/misc/dnsmasq.leases",
    "/var/lib/dnsmasq/dnsmasq.leases",
    "/tmp/dhcp.leases",  # noqa: S108 - there OpenWrt has it
    "/var/lib/dhcp/dhcpd.leases",
    "/var/lib/dhcp/dhcpd6.leases",
    "/var/lib/dhcpd/dhcpd.leases",
    "/var/lib/dhcpd/dhcpd6.leases",
    "/var/lib/kea/kea-leases4.csv",
    "/var/lib/kea/kea-leases6.csv",
)
#: Seconds between two looks whether a file has changed.
LOOK_EVERY_S: Final = 2.0

_log = logging.getLogger(__name__)


class LeaseFiles:
    """Host names by address, or by the MAC of another address's lease."""

    def __init__(
        self,
        paths: Iterable[str] = (),
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Without paths, the usual places; a file there that is missing is not missed."""
        self._required = tuple(map(Path, paths))
        self._paths = self._required or tuple(map(Path, USUAL_PLACES))
        self._clock = clock
        self._wall = wall
        self._look_at = -LOOK_EVERY_S
        self._seen: dict[Path, tuple[int, int] | None] = {}
        self._by_address: dict[str, Lease] = {}
        self._by_mac: dict[str, Lease] = {}

    def hostname(self, address: str, mac: str | None) -> str | None:
        """The name that the host with this address goes by; None where no lease says."""
        now = self._clock()
        if now >= self._look_at + LOOK_EVERY_S:
            self._look_at = now
            self._refresh()
        for lease in (self._by_address.get(address), self._by_mac.get(mac or "")):
            if lease is not None and lease.hostname and lease.until > self._wall():
                return lease.hostname
        return None

    def _refresh(self) -> None:
        seen = {path: _stamp(path) for path in self._paths}
        if seen == self._seen:
            return
        self._seen = seen
        leases = [lease for path in self._paths for lease in self._read(path).values()]
        self._by_address = {lease.address: lease for lease in leases}
        # Of one device's leases, the one that ends last is the newest.
        leases.sort(key=lambda lease: lease.until)
        self._by_mac = {lease.mac: lease for lease in leases if lease.mac and lease.hostname}

    def _read(self, path: Path) -> dict[str, Lease]:
        try:
            return read_leases(path.read_text(encoding="utf-8", errors="replace"))
        except OSError as error:
            if path in self._required or not isinstance(error, FileNotFoundError):
                _log.warning("%s cannot be read: %s", path, error.strerror)
            return {}


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file does."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size
