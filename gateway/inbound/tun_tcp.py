"""TCP in the TUN, by the kernel's own stack: packets rewritten, flows accepted as usual.

A packet costs two system calls and two slices, however long it is: super-packets pass whole,
with what the kernel has left undone. See ``gateway.inbound.tun_nat`` for what is rewritten.
What has options or came in fragments takes a slower way, and loses its options there: they
are for hosts that a connection which ends here never comes to.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from ipaddress import IPv4Interface, IPv6Interface
from socket import SocketType
from time import monotonic
from typing import Final

from gateway.flow import Endpoint
from gateway.inbound.tcp import Ends
from gateway.inbound.tun import TunWriter
from gateway.inbound.tun_nat import NatTable
from gateway.wire.bare import bare
from gateway.wire.ip import (
    ACK,
    FIN,
    NEEDS_CSUM,
    PLAIN_V4,
    RST,
    SYN,
    TCP,
    V4_HEADER,
    V6_HEADER,
    VNET_BYTES,
    Buffer,
    IpPacket,
    Malformed,
    Vnet,
    read_tcp,
    tcp_reset,
)

#: Of a frame: the vnet header's flags, and of headers without options the version, IPv4's flags
#: and offset, its protocol, its checksum, both ends, TCP's flags, TCP's checksum.
_V4: Final = struct.Struct("!B9xB5xHxBH12s9xB2xH")
_V6: Final = struct.Struct("!B15xBx36s9xB2xH")
_PUT_V4: Final = struct.Struct("!H12s")
_V4_CHECKSUM: Final = VNET_BYTES + 10
_V4_TCP_CHECKSUM: Final = VNET_BYTES + V4_HEADER + 16
_V6_ENDS: Final = slice(VNET_BYTES + 8, VNET_BYTES + 44)
_V6_TCP_CHECKSUM: Final = VNET_BYTES + V6_HEADER + 16
#: More fragments, or an offset.
_FRAGMENT: Final = 0x3FFF
_STATE: Final = FIN | SYN | RST
#: IPv4's headers and the vnet header.
_LEAST: Final = VNET_BYTES + V4_HEADER + 20


class TunTcp:
    """Rewrites the TCP packets of a device, of both families.

    A ``PacketHandler``, a ``Rewriter``, and the ``Origin`` of its listeners.
    """

    def __init__(
        self,
        interfaces: tuple[IPv4Interface, IPv6Interface],
        ports: tuple[int, int],
        numbers: range,
        writer: TunWriter,
        counters: Counter[str],
        *,
        refused: Callable[[Buffer], object],
        idle_s: float,
    ) -> None:
        """``interfaces`` are the device's, ``ports`` the listeners' there, of both families.

        ``numbers`` are those of flows; ``idle_s``: longer than they may be quiet (seconds).
        ``refused``: tells the sender of a packet that it is not taken with these options.
        """
        self._writer = writer
        self._refused = refused
        self._counters = counters
        owns = [interface.ip for interface in interfaces]
        self._own = {packed for own in owns for packed in (own.packed, (own + 1).packed)}
        self._v4, self._v6 = (
            NatTable(own.packed, (own + 1).packed, port, numbers=numbers, idle_s=idle_s)
            for own, port in zip(owns, ports, strict=True)
        )
        self._tables = {4: self._v4, 6: self._v6}
        self._by_peer = {str(own + 1): self._tables[own.version] for own in owns}
        self._known_v4, self._known_v6 = self._v4.known, self._v6.known

    def rewrite(self, frame: bytearray, size: int) -> bool:
        """See ``gateway.inbound.tun.Rewriter``."""
        if size < _LEAST:
            return False
        if frame[VNET_BYTES] == PLAIN_V4:
            undone, _, part, protocol, check, ends, flags, tcp_check = _V4.unpack_from(frame)
            if protocol != TCP or part & _FRAGMENT:
                return False
            found = self._known_v4.get(ends)
            if found is None:
                return False
            after, address_change, change, flow, side = found
            if flags & _STATE and not self._v4.turn(flow, side, flags):
                return False
            check = (~check & 0xFFFF) + address_change
            check = ~((check & 0xFFFF) + (check >> 16)) & 0xFFFF
            _PUT_V4.pack_into(frame, _V4_CHECKSUM, check, after)
            at = _V4_TCP_CHECKSUM
        else:
            undone, protocol, ends, flags, tcp_check = _V6.unpack_from(frame)
            if protocol != TCP or frame[VNET_BYTES] >> 4 != 6:
                return False
            found = self._known_v6.get(ends)
            if found is None:
                return False
            after, address_change, change, flow, side = found
            if flags & _STATE and not self._v6.turn(flow, side, flags):
                return False
            frame[_V6_ENDS] = after
            at = _V6_TCP_CHECKSUM
        if undone & NEEDS_CSUM:
            # There stands the pseudo header's sum, which has no ports in it, not inverted.
            tcp_check += address_change
            tcp_check = (tcp_check & 0xFFFF) + (tcp_check >> 16)
        else:
            tcp_check = (~tcp_check & 0xFFFF) + change
            tcp_check = ~((tcp_check & 0xFFFF) + (tcp_check >> 16)) & 0xFFFF
        frame[at] = tcp_check >> 8
        frame[at + 1] = tcp_check & 0xFF
        flow.active = True
        return True

    def take(self, ip: IpPacket, vnet: Vnet, packet: memoryview) -> str | None:
        """Begin a flow, or answer what belongs to none. See ``PacketHandler``."""
        options = ip.transport - (V4_HEADER if ip.family == 4 else V6_HEADER)
        if options:
            plain = bare(ip, packet)
            if plain is None:
                self._refused(packet)
                return "options"
            self._counters["tun_options_removed"] += 1
            packet, vnet = memoryview(plain), _moved(vnet, options)
            ip = ip._replace(transport=ip.transport - options, end=len(plain))
        tcp = read_tcp(packet, ip)
        if isinstance(tcp, Malformed):
            return tcp
        frame = bytearray(vnet.pack()) + packet[: ip.end]
        # Of a flow that is known: it had options, or was in fragments.
        if self.rewrite(frame, len(frame)):
            self._writer.write(frame[VNET_BYTES:], vnet.pack())
            return None
        table = self._tables[ip.family]
        ours, inwards = ip.source in self._own, ip.destination in self._own
        if inwards and not ours:
            return "own_address"
        # From our own address outwards it is this machine's own, which a route has led here.
        if inwards or tcp.flags & (SYN | ACK | RST) != SYN:
            # The listener's, of a flow that was forgotten, or the client's, of one before us.
            answer = tcp_reset(ip, tcp)
            if answer is not None:
                self._writer.write(answer)
            return "no_flow"
        ends = ip.source + ip.destination + bytes(packet[ip.transport : ip.transport + 4])
        if table.open(ends, monotonic()) is None:
            return "no_number"
        self._counters["tun_tcp_flows"] += 1
        self.rewrite(frame, len(frame))
        self._writer.write(frame[VNET_BYTES:], vnet.pack())
        return None

    def expire(self, now: float) -> None:
        """See ``PacketHandler``."""
        for table in self._tables.values():
            table.expire(now)

    def close(self) -> None:
        """See ``PacketHandler``. The listener's end of each flow is its own."""

    def listened(self, family: int, ends: bytes) -> bytes | None:
        """See ``NatTable.listened``."""
        return self._tables[family].listened(ends)

    def ends(self, client: SocketType, source: Endpoint) -> Ends | None:
        """See ``gateway.inbound.tcp.Diversion``."""
        del client
        table = self._by_peer.get(source.host)
        return None if table is None else table.accept(source.port)


def _moved(vnet: Vnet, back: int) -> Vnet:
    """What is left undone of a packet whose headers have become shorter by so many bytes."""
    if vnet.gso_type:
        vnet = vnet._replace(header=max(0, vnet.header - back))
    if vnet.flags & NEEDS_CSUM:
        vnet = vnet._replace(csum_start=max(0, vnet.csum_start - back))
    return vnet
