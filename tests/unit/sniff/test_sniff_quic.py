"""Names of QUIC clients, with aioquic as the witness; and other datagrams."""

from __future__ import annotations

import itertools
import ssl
from collections.abc import Iterable

import pytest
from aioquic.buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicProtocolVersion, encode_quic_retry, pull_quic_header
from hypothesis import given
from hypothesis import strategies as st

from gateway.sniff.datagrams import Datagrams
from gateway.sniff.quic import MAX_DATAGRAMS
from gateway.sniff.sighting import UNKNOWN, Sighting

NAME = "www.video.example"
FOUND = Sighting("quic", NAME, complete=True)
VERSIONS = [QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2]
#: More than one datagram's worth of protocols to offer.
MANY = [f"protocol-number-{number}" for number in range(150)]
SERVER = ("192.0.2.1", 443)


def client(version: int = VERSIONS[0], protocols: Iterable[str] = ("h3",)) -> QuicConnection:
    settings = QuicConfiguration(
        is_client=True,
        server_name=NAME,
        alpn_protocols=list(protocols),
        original_version=version,
        supported_versions=VERSIONS,
        verify_mode=ssl.CERT_NONE,
    )
    connection = QuicConnection(configuration=settings)
    connection.connect(SERVER, now=0.0)
    return connection


def sent(connection: QuicConnection) -> list[bytes]:
    return [data for data, _ in connection.datagrams_to_send(now=0.0)]


def seen(datagrams: Iterable[bytes]) -> Sighting:
    looking = Datagrams()
    return [looking.feed(datagram) for datagram in datagrams][-1]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_name_that_a_client_asks_for(version: int) -> None:
    (datagram,) = sent(client(version))
    assert seen([datagram]) == FOUND


@pytest.mark.parametrize("version", VERSIONS)
def test_a_hello_in_several_datagrams_in_any_order(version: int) -> None:
    datagrams = sent(client(version, MANY))
    assert len(datagrams) >= 3
    for order in itertools.permutations(datagrams):
        looking = Datagrams()
        answers = [looking.feed(datagram) for datagram in order]
        assert [answer.complete for answer in answers[:-1]] == [False] * (len(order) - 1)
        assert all(answer.protocol == "quic" for answer in answers)
        assert answers[-1] == looking.feed(b"whatever follows") == FOUND


def test_one_datagram_is_lost_and_sent_again() -> None:
    first, *others = sent(client(protocols=MANY))
    assert seen([*others, *others]).complete is False
    assert seen([*others, *others, first]) == FOUND


def test_a_server_that_asks_for_a_retry() -> None:
    """The client begins anew with the connection id, and so the keys, that the server gave it."""
    connection = client(protocols=MANY)
    first = sent(connection)[0]
    header = pull_quic_header(Buffer(data=first), host_cid_length=8)
    retry = encode_quic_retry(
        version=VERSIONS[0],
        source_cid=b"other-id",
        destination_cid=header.source_cid,
        original_destination_cid=header.destination_cid,
        retry_token=b"token" * 9,
    )
    connection.receive_datagram(retry, SERVER, now=0.1)
    again = sent(connection)
    assert pull_quic_header(Buffer(data=again[0]), host_cid_length=8).token == b"token" * 9
    assert seen(again) == FOUND
    assert seen([first, *again]) == FOUND


def test_two_initials_in_one_datagram() -> None:
    """Packets may be coalesced, and what is behind them does not disturb."""
    assert seen([b"".join(sent(client(protocols=MANY)))]) == FOUND
    assert seen([sent(client())[0] + b"\xe0rubbish"]) == FOUND


def test_a_version_that_is_yet_to_come() -> None:
    """That it is QUIC shows in any version (RFC 8999); the name does not."""
    (datagram,) = sent(client())
    assert seen([b"\xc3\x0a\x1a\x2a\x3a" + datagram[5:]]) == Sighting("quic", complete=True)
    assert seen([b"\xc3\x0a\x1a\x2a\x3a" + datagram[5:100]]) == UNKNOWN
    assert seen([b"\xc3\x00\x00\x00\x00" + datagram[5:]]) == UNKNOWN  # a server's negotiation


def test_a_hello_without_end() -> None:
    *some, _ = sent(client(protocols=MANY))
    looking = Datagrams()
    answers = [looking.feed(datagram) for datagram in itertools.islice(itertools.cycle(some), 99)]
    assert [answer.complete for answer in answers].index(True) == MAX_DATAGRAMS - 1
    assert len(set(answers[MAX_DATAGRAMS:])) == 1


(DATAGRAM,) = sent(client())
#: What is behind its only packet is padding.
LENGTH = pull_quic_header(Buffer(data=DATAGRAM), host_cid_length=8).packet_length


@given(st.integers(0, LENGTH - 1), st.integers(1, 255))
def test_a_datagram_that_was_changed(at: int, change: int) -> None:
    """Encryption shows it: no answer, or one as if there were no such datagram."""
    datagram = bytearray(DATAGRAM)
    datagram[at] ^= change
    assert seen([bytes(datagram)]) in (UNKNOWN, Sighting("quic", complete=True))
    assert seen([DATAGRAM, bytes(datagram)]) == FOUND


@given(st.integers(0, LENGTH - 1))
def test_a_datagram_that_was_cut(end: int) -> None:
    assert seen([DATAGRAM[:end]]) == UNKNOWN


@given(st.lists(st.binary(max_size=100), min_size=1, max_size=4), st.sampled_from(VERSIONS))
def test_any_datagrams(datagrams: list[bytes], version: int) -> None:
    head = b"\xc3" + version.to_bytes(4, "big")
    assert seen(datagrams).name == seen([head + each for each in datagrams]).name == ""
    looking = Datagrams()
    looking.feed(sent(client(version, MANY))[0])
    for datagram in datagrams:
        assert looking.feed(head + datagram).protocol == "quic"


@pytest.mark.parametrize(
    ("datagram", "protocol"),
    [
        (b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12), "stun"),
        (b"\xab\xcd\x01\x20\x00\x01\x00\x00\x00\x00\x00\x01\x01a\x00\x00\x01\x00\x01", "dns"),
        (b"\x16\xfe\xff\x00\x00", "dtls"),
        (b"\x23" + bytes(47), "ntp"),
        (b"d1:ad2:id20:abcdefghij0123456789e1:q4:ping1:t2:aa1:y1:qe", "bittorrent"),
    ],
)
def test_other_protocols(datagram: bytes, protocol: str) -> None:
    assert seen([datagram]) == Sighting(protocol, complete=True)


@pytest.mark.parametrize("datagram", [b"", b"\x00", bytes(48), b"\x40" + bytes(1300), b"x" * 1200])
def test_nobody_knows_it(datagram: bytes) -> None:
    assert seen([datagram]) == UNKNOWN
