"""Packets as a TUN gives them: rewritten in place, begun, or refused; by their checksums."""

from __future__ import annotations

import struct
import time
from collections import Counter
from ipaddress import IPv4Interface, IPv6Interface, ip_address
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.flow import Endpoint
from gateway.inbound.tun import TunWriter
from gateway.inbound.tun_errors import TunErrors
from gateway.inbound.tun_nat import NUMBERS
from gateway.inbound.tun_tcp import TunTcp
from gateway.kernel.tun import FRAME_BYTES, TunDevice
from gateway.wire.icmp_error import IcmpError
from gateway.wire.icmp_packet import error_packet, read_error
from gateway.wire.ip import (
    ACK,
    FIN,
    GSO_TCPV4,
    NEEDS_CSUM,
    NO_OFFLOAD,
    PSH,
    RST,
    SYN,
    TCP,
    VNET_BYTES,
    IpPacket,
    TcpHeader,
    Vnet,
    checksum,
    fold,
    ip_packet,
    read_ip,
    read_tcp,
    read_vnet,
    transport_checksum,
    udp_packet,
    words,
)
from gateway.wire.path_mtu import MAX_AGE_S, PathMtus

OWN = (IPv4Interface("172.29.88.1/30"), IPv6Interface("fd00:88::1/126"))
PORT = 7895
V4 = ("192.168.1.2", "203.0.113.9", *(str(i.ip) for i in (OWN[0], OWN[0] + 1)))
V6 = ("2001:db8::2", "2001:db8:9::9", *(str(i.ip) for i in (OWN[1], OWN[1] + 1)))
FAMILIES = pytest.mark.parametrize(("client", "remote", "own", "peer"), [V4, V6])


class Written(TunWriter):
    """What would be written."""

    def __init__(self) -> None:
        super().__init__(cast("TunDevice", None), Counter())
        self.packets: list[bytes] = []
        self.vnets: list[Vnet] = []
        self.refused: list[bytes] = []

    def write(self, packet: bytes, vnet: bytes = NO_OFFLOAD) -> bool:
        self.packets.append(bytes(packet))
        self.vnets.append(read_vnet(vnet))
        return True

    def translated(self) -> TunTcp:
        """What writes here."""
        refused = self.refused.append
        return TunTcp(OWN, (PORT, PORT), NUMBERS, self, Counter(), refused=refused, idle_s=7200)


@pytest.fixture
def written() -> Written:
    return Written()


@pytest.fixture
def tcp(written: Written) -> TunTcp:
    return written.translated()


def packet(
    source: str, destination: str, ports: tuple[int, int], flags: int, payload: bytes = b""
) -> bytes:
    ends = ip_address(source).packed, ip_address(destination).packed
    segment = struct.pack("!HHIIBBHHH", *ports, 7, 9, 5 << 4, flags, 512, 0, 0) + payload
    check = transport_checksum(*ends, TCP, segment)
    return ip_packet(*ends, TCP, segment[:16] + check.to_bytes(2, "big") + segment[18:])


def parsed(data: bytes) -> tuple[IpPacket, TcpHeader]:
    ip = read_ip(data)  # which tests IPv4's checksum
    assert isinstance(ip, IpPacket), ip
    tcp = read_tcp(data, ip)
    assert isinstance(tcp, TcpHeader)
    return ip, tcp


def ends_of(data: bytes) -> tuple[str, int, str, int]:
    """The ends of a packet whose checksums are well."""
    ip, _ = parsed(data)
    assert transport_checksum(ip.source, ip.destination, TCP, data[ip.transport :]) == 0
    return ends_of_any(data)


def ends_of_any(data: bytes) -> tuple[str, int, str, int]:
    """The same, of a packet whose checksum the kernel is to make."""
    ip, tcp = parsed(data)
    source, destination = ip_address(ip.source), ip_address(ip.destination)
    return str(source), tcp.source, str(destination), tcp.destination


def given_to(tcp: TunTcp, data: bytes) -> str | None:
    """As the reader does it with what is not rewritten."""
    ip, _ = parsed(data)
    return tcp.take(ip, Vnet(), memoryview(data))


def rewritten(tcp: TunTcp, data: bytes, vnet: Vnet = Vnet()) -> bytes | None:  # noqa: B008
    frame = bytearray(FRAME_BYTES)
    whole = vnet.pack() + data
    frame[: len(whole)] = whole
    if not tcp.rewrite(frame, len(whole)):
        assert frame[: len(whole)] == whole, "what is not known is not touched"
        return None
    return bytes(frame[VNET_BYTES : len(whole)])


def begin(tcp: TunTcp, written: Written, client: str, remote: str) -> int:
    """A flow from port 50000 to 443; its number."""
    assert given_to(tcp, packet(client, remote, (50000, 443), SYN)) is None
    return parsed(written.packets.pop())[1].source


@FAMILIES
def test_a_flow_both_ways(
    tcp: TunTcp, written: Written, client: str, remote: str, own: str, peer: str
) -> None:
    assert rewritten(tcp, packet(client, remote, (50000, 443), SYN)) is None
    assert given_to(tcp, packet(client, remote, (50000, 443), SYN)) is None
    source, number, destination, port = ends_of(written.packets.pop())
    assert (source, destination, port) == (peer, own, PORT)

    answer = rewritten(tcp, packet(own, peer, (PORT, number), SYN | ACK))
    assert answer is not None
    assert ends_of(answer) == (remote, 443, client, 50000)

    data = rewritten(tcp, packet(client, remote, (50000, 443), ACK | PSH, b"odd"))
    assert data is not None
    assert ends_of(data) == (peer, number, own, PORT)
    assert data.endswith(b"odd")

    accepted = tcp.ends(None, Endpoint(peer, number))  # type: ignore[arg-type]
    assert accepted == (Endpoint(client, 50000), Endpoint(remote, 443))
    assert tcp.ends(None, Endpoint(client, number)) is None  # type: ignore[arg-type]


@FAMILIES
def test_a_checksum_that_the_kernel_will_make_is_begun_right(
    tcp: TunTcp, written: Written, client: str, remote: str, own: str, peer: str
) -> None:
    """Of a super-packet: where its checksum belongs stands the pseudo header's sum (virtio)."""
    begin(tcp, written, client, remote)
    data = bytearray(packet(client, remote, (50000, 443), ACK, bytes(40000)))
    ip, _ = parsed(bytes(data))

    def pseudo(source: str, destination: str) -> int:
        both = ip_address(source).packed + ip_address(destination).packed
        return words(both + struct.pack("!II", ip.end - ip.transport, TCP))

    at = ip.transport + 16
    data[at : at + 2] = pseudo(client, remote).to_bytes(2, "big")
    undone = Vnet(NEEDS_CSUM, GSO_TCPV4, ip.transport + 20, 1448, ip.transport, 16)
    found = rewritten(tcp, bytes(data), undone)
    assert found is not None
    assert fold(int.from_bytes(found[at : at + 2], "big")) % 0xFFFF == pseudo(peer, own) % 0xFFFF


@FAMILIES
def test_what_belongs_to_no_flow_is_reset(
    tcp: TunTcp, written: Written, client: str, remote: str, own: str, peer: str
) -> None:
    assert given_to(tcp, packet(client, remote, (50000, 443), ACK)) == "no_flow"
    assert ends_of(written.packets.pop()) == (remote, 443, client, 50000)
    assert given_to(tcp, packet(own, peer, (PORT, 20000), ACK)) == "no_flow"
    assert ends_of(written.packets.pop()) == (peer, 20000, own, PORT)
    assert given_to(tcp, packet(client, remote, (50000, 443), RST)) == "no_flow"
    assert not written.packets


@FAMILIES
def test_nobody_talks_to_our_addresses(
    tcp: TunTcp, written: Written, client: str, remote: str, own: str, peer: str
) -> None:
    del remote
    for ours in (own, peer):
        assert given_to(tcp, packet(client, ours, (50000, PORT), SYN)) == "own_address"
    assert not written.packets


def test_other_packets_with_the_same_ends_are_not_a_flow_s(tcp: TunTcp, written: Written) -> None:
    client, remote = V4[:2]
    begin(tcp, written, client, remote)
    data = packet(client, remote, (50000, 443), ACK)
    assert rewritten(tcp, data) is not None
    assert rewritten(tcp, data[:9] + bytes((17,)) + data[10:]) is None  # UDP
    assert rewritten(tcp, data[:6] + b"\x20\x00" + data[8:]) is None  # the first fragment
    assert rewritten(tcp, data[:6] + b"\x00\x01" + data[8:]) is None  # a later one
    assert rewritten(tcp, data[:39]) is None  # cut off


def optioned(data: bytes, *, refused: bool = False) -> bytes:
    """The packet with eight bytes of options: of padding, or such as nobody here may take."""
    if data[0] >> 4 == 6:
        options = bytes((TCP, 0)) + (b"\xc2\4\0\1\0\0" if refused else bytes(6))
        return ip_packet(data[8:24], data[24:40], 60, options + data[40:])
    head = b"\x47\0" + (len(data) + 8).to_bytes(2, "big") + data[4:10] + b"\0\0" + data[12:20]
    head += b"\x83\7\4" + bytes(5) if refused else b"\x94\4" + bytes(6)
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + data[20:]


@FAMILIES
def test_a_flow_of_packets_with_options(
    tcp: TunTcp, written: Written, client: str, remote: str, own: str, peer: str
) -> None:
    """Its listener sees none of them."""
    begun = optioned(packet(client, remote, (50000, 443), SYN))
    assert rewritten(tcp, begun) is None
    assert given_to(tcp, begun) is None
    source, number, destination, port = ends_of(written.packets.pop())
    assert (source, destination, port) == (peer, own, PORT)

    data = optioned(packet(client, remote, (50000, 443), ACK | PSH, b"odd"))
    assert given_to(tcp, data) is None
    assert ends_of(written.packets[-1]) == (peer, number, own, PORT)
    assert parsed(written.packets.pop())[0].transport == (40 if ":" in client else 20)
    plain = rewritten(tcp, packet(client, remote, (50000, 443), ACK | FIN))
    assert plain is not None
    assert ends_of(plain) == (peer, number, own, PORT)


@FAMILIES
def test_of_a_super_packet_with_options_the_headers_end_earlier(
    tcp: TunTcp, written: Written, client: str, remote: str, own: str, peer: str
) -> None:
    begin(tcp, written, client, remote)
    data = optioned(packet(client, remote, (50000, 443), ACK, bytes(4000)))
    ip, _ = parsed(data)
    undone = Vnet(NEEDS_CSUM, GSO_TCPV4, ip.transport + 20, 1448, ip.transport, 16)
    assert tcp.take(ip, undone, memoryview(data)) is None
    assert written.vnets.pop() == undone._replace(
        header=ip.transport + 12, csum_start=ip.transport - 8
    )
    source, _, destination, port = ends_of_any(written.packets.pop())
    assert (source, destination, port) == (peer, own, PORT)


@FAMILIES
def test_what_came_in_fragments_belongs_to_its_flow(
    tcp: TunTcp, written: Written, client: str, remote: str, own: str, peer: str
) -> None:
    """Put together, it is offered to nobody but us."""
    number = begin(tcp, written, client, remote)
    assert given_to(tcp, packet(client, remote, (50000, 443), ACK | PSH, bytes(3000))) is None
    assert ends_of(written.packets.pop()) == (peer, number, own, PORT)


@FAMILIES
def test_options_that_lead_elsewhere_are_refused(
    tcp: TunTcp, written: Written, client: str, remote: str, own: str, peer: str
) -> None:
    """And whoever sent them is told."""
    del own, peer
    data = optioned(packet(client, remote, (50000, 443), SYN), refused=True)
    assert given_to(tcp, data) == "options"
    assert written.refused == [data]
    assert not written.packets


def test_a_flow_that_is_over_begins_anew(tcp: TunTcp, written: Written) -> None:
    client, remote, own, peer = V4
    number = begin(tcp, written, client, remote)
    assert rewritten(tcp, packet(own, peer, (PORT, number), FIN | ACK)) is not None
    assert rewritten(tcp, packet(client, remote, (50000, 443), FIN | ACK)) is not None
    assert rewritten(tcp, packet(client, remote, (50000, 443), SYN)) is None
    assert begin(tcp, written, client, remote) != number


@given(st.binary(max_size=90), st.sampled_from([b"\x45", b"\x60", b""]))
def test_any_frame_is_rewritten_or_left(data: bytes, start: bytes) -> None:
    tcp = Written().translated()
    assert rewritten(tcp, start + data) is None


# --- errors that routers tell of flows ----------------------------------------------------------


class Others:
    """Who takes other ICMP."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.calls: list[str] = []

    def take(self, ip: IpPacket, vnet: Vnet, packet: memoryview) -> str:
        del ip, vnet
        self.taken.append(bytes(packet))
        return "another's"

    def expire(self, now: float) -> None:
        self.calls.append(f"expire {now:g}")

    def close(self) -> None:
        self.calls.append("close")


@pytest.fixture
def others() -> Others:
    return Others()


@pytest.fixture
def paths() -> PathMtus:
    return PathMtus(1500)


@pytest.fixture
def errors(tcp: TunTcp, paths: PathMtus, written: Written, others: Others) -> TunErrors:
    return TunErrors(tcp, paths, written, Counter(), others)


def handed(errors: TunErrors, data: bytes) -> str | None:
    ip = read_ip(data)
    assert isinstance(ip, IpPacket)
    return errors.take(ip, Vnet(), memoryview(data))


def told(about: bytes, error: IcmpError, router: str) -> bytes:
    packet = error_packet(about, error, info=1280, source=router)
    assert packet is not None
    return packet


def too_big(about: bytes, router: str) -> bytes:
    return told(about, IcmpError.TOO_BIG, router)


ROUTER = {4: "192.168.1.1", 6: "2001:db8::1"}


@FAMILIES
def test_the_kernel_is_told_by_the_ends_that_it_knows(
    tcp: TunTcp,
    written: Written,
    errors: TunErrors,
    others: Others,
    client: str,
    remote: str,
    own: str,
    peer: str,
) -> None:
    number = begin(tcp, written, client, remote)
    sent = rewritten(tcp, packet(own, peer, (PORT, number), ACK, bytes(1400)))
    assert sent is not None
    assert handed(errors, too_big(sent, ROUTER[ip_address(client).version])) is None
    (data,) = written.packets
    ip = read_ip(data)
    assert isinstance(ip, IpPacket)
    assert (str(ip_address(ip.source)), str(ip_address(ip.destination))) == (peer, own)
    error = read_error(ip, data)
    assert error is not None, "its checksum is right"
    assert error.message[:8][-2:] == (1280).to_bytes(2, "big")
    half = len(ip.source)
    assert str(ip_address(error.ends[:half])) == own
    assert str(ip_address(error.ends[half:-4])) == peer
    assert struct.unpack("!HH", error.ends[-4:]) == (PORT, number)
    assert error.message[-400:] == bytes(400), "the rest is quoted as it was"
    assert not others.taken


@FAMILIES
def test_errors_about_what_is_no_flow_of_ours(
    tcp: TunTcp,
    written: Written,
    errors: TunErrors,
    others: Others,
    client: str,
    remote: str,
    own: str,
    peer: str,
) -> None:
    number = begin(tcp, written, client, remote)
    far, near = ip_address(remote).packed, ip_address(client).packed
    router = ROUTER[ip_address(client).version]
    given = [
        too_big(packet(remote, client, (443, 50001), ACK), router),
        too_big(packet(remote, client, (444, 50000), ACK), router),
        told(udp_packet(far, 443, near, 50000, b"datagram"), IcmpError.PORT_UNREACHABLE, router),
        # Nobody who is not the kernel knows these.
        too_big(packet(peer, own, (number, PORT), ACK), router),
    ]
    assert [handed(errors, each) for each in given] == ["another's"] * len(given)
    assert others.taken == given
    assert not written.packets


@pytest.mark.parametrize(("client", "remote"), [V4[:2], V6[:2]])
def test_what_was_too_big_for_a_client_is_kept_in_mind(
    errors: TunErrors, paths: PathMtus, others: Others, client: str, remote: str
) -> None:
    """Of IPv6; for a while. IPv4's routers cut what is too big, since nobody forbids it."""
    far, near = ip_address(remote).packed, ip_address(client).packed
    v6 = len(near) == 16
    data = too_big(udp_packet(far, 443, near, 50000, b"datagram"), ROUTER[6 if v6 else 4])
    for _ in range(2):
        assert handed(errors, data) == (None if v6 else "another's")
    assert paths.of(near) == (1280 if v6 else 1500)
    assert len(others.taken) == (0 if v6 else 2)
    errors.expire(time.monotonic() + MAX_AGE_S)
    assert paths.of(near) == 1500


def test_the_rest_is_the_others(errors: TunErrors, others: Others) -> None:
    errors.expire(7)
    errors.close()
    assert others.calls == ["expire 7", "close"]
