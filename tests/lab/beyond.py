"""A host two hops behind the router, over a link that takes less than others do."""

from __future__ import annotations

from traffic import Family, address

from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.namespaces import added, ip
from gateway.lab.topology import Machine as MachineSpec

#: The ends of the link, that of the internet first; an address that nobody there has.
LINK: dict[Family, tuple[str, str]] = {
    4: ("192.0.2.1", "192.0.2.2"),
    6: ("2001:db8:2::1", "2001:db8:2::2"),
}
NOBODY: dict[Family, str] = {4: "192.0.2.77", 6: "2001:db8:2::77"}
MTU = 1280


def hops(lab: Lab, family: Family) -> list[set[str]]:
    """The addresses that each router on the way there may tell of itself by."""
    internet = [
        lab.internet.spec.links[0].pair.of(family),
        *lab.topology.internet_addresses,
    ]
    return [
        {address(lab.router, family, "office")},
        set(internet),
    ]


def let_through(lab: Lab) -> None:
    """Have the internet forward."""
    keys = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    lab.internet.run(["sysctl", "-qw", *(f"{key}=1" for key in keys)])


def add_beyond(lab: Lab) -> Machine:
    """The machine ``beyond``, which the internet forwards to."""
    internet = lab.internet
    name = f"{internet.namespace.removesuffix('internet')}beyond"
    beyond = lab.machines["beyond"] = Machine(MachineSpec("beyond", (), ()), name, lab.directory)
    ip([f"netns add {name}"])
    beyond.run(["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
    let_through(lab)
    ends = " type veth peer ".join(f"name far0 netns {m.namespace}" for m in (internet, beyond))
    ip([f"link add {ends}"])
    for machine, side in ((internet, 0), (beyond, 1)):
        own = (added(f"{LINK[f][side]}/{24 if f == 4 else 64}", "far0") for f in LINK)
        ip([f"link set far0 mtu {MTU} up", "link set lo up", *own], machine.namespace)
    ip([f"route add default via {ends[0]}" for ends in LINK.values()], name)
    return beyond
