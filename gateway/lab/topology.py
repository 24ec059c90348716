"""The lab's machines, networks and addresses, read from ``topology.yaml``.

``python3 -m gateway.lab.topology --shell`` prints them as shell variables, for the
scripts in ``vagrant/``; it needs PyYAML and nothing else of the project.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from pathlib import Path
from typing import Any, Final, Literal

import yaml

FILE = Path(__file__).with_suffix(".yaml")
#: What the lab's names are below.
DOMAIN = "lab.example"

FamilyNumber = Literal[4, 6]
FAMILIES: Final[tuple[FamilyNumber, ...]] = (4, 6)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Pair:
    """An IPv4 and an IPv6 address of the same host."""

    ipv4: str
    ipv6: str

    def __iter__(self) -> Iterator[str]:
        return iter((self.ipv4, self.ipv6))

    def of(self, family: FamilyNumber) -> str:
        """One of the two."""
        return self.ipv4 if family == 4 else self.ipv6


@dataclass(frozen=True, slots=True)
class Link:
    """A network interface; the networks that it is in are those of its addresses."""

    name: str
    network: str
    addresses: tuple[IPv4Interface | IPv6Interface, ...]

    @property
    def pair(self) -> Pair:
        """Its addresses without prefix lengths."""
        return _pair([a.ip for a in self.addresses])


@dataclass(frozen=True, slots=True)
class Route:
    """One static route, of one family."""

    to: Network
    via: Address


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine: a network namespace in the lab, a virtual machine in ``vagrant/``."""

    name: str
    links: tuple[Link, ...]
    routes: tuple[Route, ...]

    def link(self, network: str) -> Link:
        """Its interface in that network. Raises ``KeyError`` where it has none."""
        for link in self.links:
            if link.network == network:
                return link
        raise KeyError(network)


@dataclass(frozen=True, slots=True)
class Upstream:
    """A SOCKS5 server; ``username`` None: no authentication."""

    name: str
    addresses: Pair
    port: int
    username: str | None = None
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Topology:
    """The whole file."""

    networks: Mapping[str, tuple[Network, ...]]
    machines: Mapping[str, Machine]
    targets: Mapping[str, Pair]
    upstreams: Mapping[str, Upstream]

    @classmethod
    def load(cls, path: Path = FILE) -> Topology:
        """Read the file. Raises ``OSError``, ``KeyError`` or ``ValueError`` where it is wrong."""
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return cls(
            networks={
                name: tuple(ip_network(prefix) for prefix in prefixes)
                for name, prefixes in data["networks"].items()
            },
            machines={name: _machine(name, spec) for name, spec in data["machines"].items()},
            targets={
                name: _pair([ip_address(a) for a in addresses])
                for name, addresses in data["targets"].items()
            },
            upstreams={
                name: Upstream(
                    name,
                    _pair([ip_address(a) for a in spec["addresses"]]),
                    spec["port"],
                    spec.get("username"),
                    spec.get("password"),
                )
                for name, spec in data["upstreams"].items()
            },
        )

    @property
    def internet_addresses(self) -> tuple[str, ...]:
        """What the machine ``internet`` answers to besides the addresses of its link."""
        hosts = [*self.targets.values(), *(u.addresses for u in self.upstreams.values())]
        return tuple(address for host in hosts for address in host)

    @property
    def names(self) -> dict[str, str]:
        """What the SOCKS servers resolve: ``web.lab.example`` and so on, to an IPv4 address."""
        return {f"{name}.{DOMAIN}": pair.ipv4 for name, pair in self.targets.items()}

    def cable(self, network: str) -> tuple[tuple[Machine, Link], tuple[Machine, Link]]:
        """The two ends of a network. Raises ``ValueError`` where there are not two."""
        ends = [
            (machine, link)
            for machine in self.machines.values()
            for link in machine.links
            if link.network == network
        ]
        if len(ends) != 2:
            raise ValueError(f"network {network} joins {len(ends)} machines, not 2")
        return ends[0], ends[1]

    def shell(self) -> str:
        """Every value as a ``NAME='value'`` line, for ``eval`` in a POSIX shell."""
        lines: dict[str, str] = {}
        for name, prefixes in self.networks.items():
            lines[f"{name}_prefixes"] = " ".join(map(str, prefixes))
        for machine in self.machines.values():
            for link in machine.links:
                lines[f"{machine.name}_{link.network}"] = link.pair.ipv4
            lines[f"{machine.name}_links"] = " ".join(
                ",".join(map(str, link.addresses)) for link in machine.links
            )
            lines[f"{machine.name}_routes"] = " ".join(f"{r.to},{r.via}" for r in machine.routes)
        for name, pair in self.targets.items():
            lines[f"{name}_ipv4"], lines[f"{name}_ipv6"] = pair
        for upstream in self.upstreams.values():
            lines[f"{upstream.name}_ipv4"], lines[f"{upstream.name}_ipv6"] = upstream.addresses
            lines[f"{upstream.name}_port"] = str(upstream.port)
            lines[f"{upstream.name}_username"] = upstream.username or ""
            lines[f"{upstream.name}_password"] = upstream.password or ""
        lines["internet_addresses"] = " ".join(self.internet_addresses)
        return "".join(f"{key.upper()}={shlex.quote(value)}\n" for key, value in lines.items())


def _machine(name: str, spec: Mapping[str, Any]) -> Machine:
    links = tuple(
        Link(link_name, link["network"], tuple(ip_interface(a) for a in link["addresses"]))
        for link_name, link in spec["links"].items()
    )
    return Machine(name, links, tuple(r for entry in spec["routes"] for r in _routes(entry)))


def _routes(entry: Mapping[str, Any]) -> Iterator[Route]:
    """The IPv4 and the IPv6 route of one entry."""
    default = ("0.0.0.0/0", "::/0")
    for to, via in zip(
        default if entry["to"] == "default" else entry["to"], entry["via"], strict=True
    ):
        network, address = ip_network(to), ip_address(via)
        if network.version != address.version:
            raise ValueError(f"route to {network} via {address}: two address families")
        yield Route(network, address)


def _pair(addresses: list[IPv4Address | IPv6Address]) -> Pair:
    """Exactly one IPv4 and one IPv6 address, in that order."""
    match addresses:
        case [IPv4Address() as ipv4, IPv6Address() as ipv6]:
            return Pair(str(ipv4), str(ipv6))
    raise ValueError(f"not one IPv4 and one IPv6 address: {', '.join(map(str, addresses))}")


def main() -> None:
    """Print the topology for a shell."""
    parser = argparse.ArgumentParser(prog="gateway.lab.topology", description=__doc__)
    parser.add_argument("--shell", action="store_true", required=True, help="as shell variables")
    parser.parse_args()
    print(Topology.load().shell(), end="")


if __name__ == "__main__":
    main()
