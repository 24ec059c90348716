"""A host of the LAN behind another one, over a link that takes less than either says."""

from __future__ import annotations

from traffic import FAMILIES, Family, address

from gateway.lab.lab import Lab
from gateway.lab.machine import Machine
from gateway.lab.namespaces import added, ip
from gateway.lab.topology import Machine as MachineSpec

MTU = 1280
#: The ends of the link, that of the router in between first.
_LINK: dict[Family, tuple[str, str]] = {
    4: ("192.168.11.1", "192.168.11.2"),
    6: ("fd00:11::1", "fd00:11::2"),
}
_LENGTH = {4: 24, 6: 64}
_NETWORK = {4: "192.168.11.0/24", 6: "fd00:11::/64"}
#: What the host says that it takes, as if its own link were like all others.
_SEGMENT = {4: 1460, 6: 1440}


def add_attic(lab: Lab) -> Machine:
    """The machine ``attic``, which ``desk`` forwards to; everybody knows the way there."""
    desk = lab.client("desk")
    name = f"{desk.namespace.removesuffix('desk')}attic"
    attic = lab.machines["attic"] = Machine(MachineSpec("attic", (), ()), name, lab.directory)
    ip([f"netns add {name}"])
    attic.run(["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"])
    keys = ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding")
    desk.run(["sysctl", "-qw", *(f"{key}=1" for key in keys)])
    ends = " type veth peer ".join(f"name attic0 netns {m.namespace}" for m in (desk, attic))
    ip([f"link add {ends}"])
    for machine, side in ((desk, 0), (attic, 1)):
        own = [added(f"{_LINK[f][side]}/{_LENGTH[f]}", "attic0") for f in FAMILIES]
        ip([f"link set attic0 mtu {MTU} up", "link set lo up", *own], machine.namespace)
    there = [f"route add default via {_LINK[f][0]} advmss {_SEGMENT[f]}" for f in FAMILIES]
    ip(there, name)
    for machine, via in ((lab.router, desk), (lab.internet, lab.router)):
        ip(
            [f"route add {_NETWORK[f]} via {address(via, f)}" for f in FAMILIES],
            machine.namespace,
        )
    return attic
