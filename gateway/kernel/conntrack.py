"""Tracked flows that are translated to a port of ours, and that must not be any longer.

The kernel asks its nat rules about the first packet of a flow, and keeps what they say with
the flow (nf_conntrack): where the rules are gone, a flow that was redirected is still led to
the port where nobody listens, and so is another one between the same two ends.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Iterator
from typing import Any

from pyroute2 import IPRoute, NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import IPS_DST_NAT, NFCTAttrTuple

#: What the kernel says where it tracks nothing at all.
_UNTRACKED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOENT)


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
    for family in (socket.AF_INET, socket.AF_INET6):
        with NFCTSocket(nfgen_family=family) as conntrack:
            for flow in list(_translated(conntrack, family)):
                answers = _ends(family, flow, "CTA_TUPLE_REPLY")
                if answers.sport in ports and answers.saddr in own:
                    forgotten += _delete(conntrack, _ends(family, flow, "CTA_TUPLE_ORIG"))
    return forgotten


def _translated(conntrack: NFCTSocket, family: int) -> Iterator[Any]:
    """The flows whose destination was rewritten: the kernel picks them, before Linux 5.15 we."""
    try:
        for flow in conntrack.dump(status=IPS_DST_NAT, status_mask=IPS_DST_NAT):
            if flow["nfgen_family"] == family and flow.get_attr("CTA_STATUS") & IPS_DST_NAT:
                yield flow
    except NetlinkError as error:
        if error.code not in _UNTRACKED:
            raise OSError(error.code, str(error)) from error


def _ends(family: int, flow: Any, which: str) -> NFCTAttrTuple:
    return NFCTAttrTuple.from_netlink(family, flow.get_attr(which))


def _delete(conntrack: NFCTSocket, ends: NFCTAttrTuple) -> bool:
    try:
        conntrack.entry("del", tuple_orig=ends)
    except NetlinkError as error:
        if error.code != errno.ENOENT:  # it has ended by itself
            raise OSError(error.code, str(error)) from error
        return False
    return True
