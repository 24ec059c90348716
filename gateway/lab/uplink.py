"""The router's way out, and what happens to such: another router, another address, or none."""

from __future__ import annotations

from typing import Final

from gateway.lab.lab import Lab
from gateway.lab.namespaces import added, ip
from gateway.lab.topology import FAMILIES, FamilyNumber

#: The other router of the WAN, and the address of a renewed lease.
_OTHER_ROUTER: Final[dict[FamilyNumber, str]] = {4: "203.0.113.254", 6: "2001:db8:113::fe"}
_RENEWED: Final[dict[FamilyNumber, str]] = {4: "203.0.113.77", 6: "2001:db8:113::77"}
_LENGTH: Final = {4: 24, 6: 64}


class Uplink:
    """``wan0`` of a lab's router; ``addresses`` are those that the router has there now."""

    def __init__(self, lab: Lab) -> None:
        self._router, self._internet = lab.router, lab.internet
        self.addresses = dict(zip(FAMILIES, lab.router.spec.link("wan").pair, strict=True))
        self._via = dict(zip(FAMILIES, lab.internet.spec.link("wan").pair, strict=True))

    def other_router(self) -> None:
        """The next router is another one; the old one is gone."""
        # Otherwise all addresses of a network go with the first.
        self._internet.run(["sysctl", "-qw", "net.ipv4.conf.all.promote_secondaries=1"])
        old, self._via = self._via, _OTHER_ROUTER
        ip(_added(self._via), self._internet.namespace)
        self.default("replace")
        ip(_removed(old), self._internet.namespace)

    def renew(self) -> None:
        """As a DHCP client does it: the old address goes, and the default route with it."""
        old, self.addresses = self.addresses, _RENEWED
        lines = [*_removed(old), *_added(self.addresses)]
        ip(lines, self._router.namespace)
        self.default("replace")

    def lose_default(self) -> None:
        """There is no default route by it any more."""
        self.default("del")

    def default(self, verb: str = "add") -> None:
        """The default routes of both families by it, as ``ip route`` says."""
        lines = (f"route {verb} default via {via} dev wan0" for via in self._via.values())
        ip(lines, self._router.namespace)

    def down(self) -> None:
        """The link is down."""
        ip(["link set wan0 down"], self._router.namespace)

    def up(self) -> None:
        """It is up again, with its routes.

        IPv6 addresses go with a link, and come back by themselves only with a router's help.
        """
        ip(["link set wan0 up", *_added({6: self.addresses[6]})], self._router.namespace)
        self.default("replace")


def _added(addresses: dict[FamilyNumber, str]) -> list[str]:
    return [added(f"{each}/{_LENGTH[family]}", "wan0") for family, each in addresses.items()]


def _removed(addresses: dict[FamilyNumber, str]) -> list[str]:
    return [f"address del {each}/{_LENGTH[f]} dev wan0" for f, each in addresses.items()]
