"""Tracked flows that are translated to a port of ours, and that must not be any longer.

The kernel asks its nat rules about the first packet of a flow, and keeps what they say with
the flow (nf_conntrack): where the rules are gone, a flow that was redirected is still led to
the port where nobody listens, and so is another one between the same two ends. There may be
tens of thousands, hence no library: the constants are those of
<linux/netfilter/nfnetlink_conntrack.h> and nf_conntrack_common.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from pyroute2 import IPRoute

from gateway.kernel.netlink import (
    NETLINK_NETFILTER,
    attribute,
    attributes,
    netlink_dump,
    netlink_tell,
)
from gateway.kernel.sockets import family_of

_GENERIC: Final = struct.Struct("!BBH")  # struct nfgenmsg
_GET, _DELETE = 1 << 8 | 1, 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK
_ORIGINAL, _REPLY, _STATUS, _ZONE, _STATUS_MASK = 1, 2, 3, 18, 26
_IP, _PROTO = 1, 2
_SOURCE: Final = {socket.AF_INET: 1, socket.AF_INET6: 3}
_SOURCE_PORT: Final = 2
_NESTED: Final = 0x8000
_TRANSLATED: Final = 1 << 5  # IPS_DST_NAT

#: What the kernel says where it tracks nothing at all.
_UNTRACKED: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT)


class Tracked(NamedTuple):
    """A flow whose destination was rewritten: who answers it, and what names it to the kernel."""

    answers: bytes
    port: int
    name: bytes


def forget_redirected(ports: Collection[int]) -> int:
    """Delete the flows that are translated to these ports of this machine; how many there were.

    Raises ``OSError`` without CAP_NET_ADMIN.
    """
    if not ports:
        return 0
    with IPRoute() as ipr:
        messages = list(ipr.get_addr())
    # Of a point-to-point link, the first is the other end's.
    own = {each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS") for each in messages}
    forgotten = 0
    for family in _SOURCE:
        hosts = (host for host in own if family_of(host) == family)
        addresses = {socket.inet_pton(family, host) for host in hosts}
        ours = [
            flow.name
            for flow in _translated(family)
            if flow.port in ports and flow.answers in addresses
        ]
        netlink_tell(NETLINK_NETFILTER, _DELETE, (_body(family, name) for name in ours))
        forgotten += len(ours)
    return forgotten


def _translated(family: int) -> Iterator[Tracked]:
    """The flows whose destination was rewritten: the kernel picks them, before Linux 5.15 we."""
    wanted = struct.pack("!I", _TRANSLATED)
    which = attribute(_STATUS, wanted) + attribute(_STATUS_MASK, wanted)
    try:
        for found in netlink_dump(NETLINK_NETFILTER, _GET, _body(family, which)):
            flow = read_flow(found)
            if flow is not None:
                yield flow
    except OSError as error:
        if error.errno not in _UNTRACKED:
            raise


def read_flow(body: bytes) -> Tracked | None:
    """One flow of a dump; None: its destination was not rewritten, or it has no ports."""
    family = body[0] if body else 0
    found = _nested(body, _GENERIC.size)
    status = found.get(_STATUS, b"")
    if family not in _SOURCE or not int.from_bytes(status, "big") & _TRANSLATED:
        return None
    reply = _nested(found.get(_REPLY, b""))
    answers = _nested(reply.get(_IP, b"")).get(_SOURCE[socket.AddressFamily(family)])
    port = _nested(reply.get(_PROTO, b"")).get(_SOURCE_PORT)
    if answers is None or port is None or _ORIGINAL not in found:
        return None
    name = attribute(_ORIGINAL | _NESTED, found[_ORIGINAL])
    if _ZONE in found:
        name += attribute(_ZONE, found[_ZONE])
    return Tracked(answers, int.from_bytes(port, "big"), name)


def _nested(data: bytes, at: int = 0) -> dict[int, bytes]:
    return {kind & ~_NESTED: value for kind, value in attributes(data, at)}


def _body(family: int, inside: bytes) -> bytes:
    return _GENERIC.pack(family, 0, 0) + inside
