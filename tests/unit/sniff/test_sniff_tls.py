"""Names of TLS clients, with Python's own TLS as the witness."""

from __future__ import annotations

import itertools
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sniff import stream
from gateway.sniff.sighting import MORE, Sighting
from gateway.sniff.tls import hello_sighting, stream_sighting


def hello_of(name: str | None, **settings) -> bytes:
    """What Python's TLS sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    for key, value in settings.items():
        setattr(context, key, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


HELLO = hello_of("www.video.example")
MESSAGE = HELLO[5:]
FOUND = Sighting("tls", "www.video.example", complete=True)


def records(message: bytes, *cuts: int) -> bytes:
    """The message in records, cut at these places."""
    edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(message)}), len(message)]
    pieces = [message[a:b] for a, b in itertools.pairwise(edges)]
    return b"".join(b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece for piece in pieces)


def vector(width: int, data: bytes) -> bytes:
    return len(data).to_bytes(width, "big") + data


def extension(kind: int, body: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, body)


def server_name(name: bytes) -> bytes:
    return extension(0, vector(2, b"\x00" + vector(2, name)))


def made(*extensions: bytes) -> bytes:
    """A hello of one's own making, with its handshake header."""
    body = b"\x03\x03" + bytes(32) + vector(1, b"") + vector(2, b"\x13\x01") + vector(1, b"\x00")
    body += vector(2, b"".join(extensions))
    return b"\x01" + vector(3, body)


@given(st.from_regex(r"[a-z0-9]{1,20}(\.[a-z][a-z0-9]{0,20}){1,5}", fullmatch=True))
def test_the_name_that_a_client_asks_for(name: str) -> None:
    assert stream.sighting(hello_of(name)) == Sighting("tls", name, complete=True)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_each_version_of_tls(version: ssl.TLSVersion) -> None:
    hello = hello_of("a.example", maximum_version=version)
    assert stream.sighting(hello) == Sighting("tls", "a.example", complete=True)


def test_capitals_are_no_other_name() -> None:
    assert stream.sighting(hello_of("WWW.Video.EXAMPLE")) == FOUND


def test_a_client_that_asks_for_nobody() -> None:
    assert stream.sighting(hello_of(None)) == Sighting("tls", complete=True)


def test_until_the_end_of_the_hello_more_is_wanted() -> None:
    for end in range(len(HELLO)):
        seen = stream.sighting(HELLO[:end])
        assert not seen.complete, end
        assert seen.protocol == ("tls" if end > 5 else ""), end
        assert seen.name in ("", "www.video.example"), end
    assert stream.sighting(HELLO) == stream.sighting(HELLO + b"\x14\x03\x03") == FOUND


@given(st.lists(st.integers(1, len(MESSAGE) - 1), max_size=8), st.integers(0, len(HELLO) + 40))
def test_cut_into_records_anywhere(cuts: list[int], end: int) -> None:
    data = records(MESSAGE, *cuts)
    assert stream.sighting(data) == FOUND
    if end < len(data):
        assert not stream.sighting(data[:end]).complete


def test_every_byte_in_a_record_of_its_own() -> None:
    assert stream.sighting(records(MESSAGE, *range(len(MESSAGE)))) == FOUND


def test_the_name_in_a_hello_that_is_not_whole() -> None:
    """What is known when the bound is met counts."""
    message = made(server_name(b"a.example"), extension(0xFF, bytes(4000)))
    assert hello_sighting(message[:200], "tls") == Sighting("tls", "a.example")


def test_an_encrypted_hello_is_known_as_such() -> None:
    """The name is the outer one."""
    message = made(server_name(b"outer.example"), extension(0xFE0D, bytes(300)))
    assert stream.sighting(records(message)) == Sighting(
        "tls", "outer.example", complete=True, ech=True
    )
    assert not FOUND.ech


@pytest.mark.parametrize(
    "name",
    [b"", b"192.0.2.1", b"1.2.3", b"a..b", b".example", b"a b.example", b"a/../b", b"\x00.example",
     b"\xc3\xa4.example", b"a\n.example", b"0x7f.1", b"::1", b"a" * 64, b"a." * 127 + b"aa"],
)  # fmt: skip
def test_what_is_no_host_name_is_none(name: bytes) -> None:
    assert stream.sighting(records(made(server_name(name)))) == Sighting("tls", complete=True)


@pytest.mark.parametrize("name", [b"a.example", b"A.Example.", b"x_y.-a-.example", b"a" * 63])
def test_what_is_met_in_practice_is_one(name: bytes) -> None:
    seen = stream.sighting(records(made(server_name(name))))
    assert seen.name == name.decode().lower().rstrip(".")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x16\x03\x01\x00\x05\x02abcd", id="another handshake message"),
        pytest.param(b"\x16\x02\x01\x00\x05\x01abcd", id="another version"),
        pytest.param(b"\x16\x03\x01\x41\x00\x01", id="a record too long"),
        pytest.param(b"\x17\x03\x03\x00\x05\x01abcd", id="data"),
        pytest.param(b"\x16\x03\x01\x00\x00", id="an empty record"),
    ],
)
def test_what_is_not_tls(data: bytes) -> None:
    assert stream_sighting(data) is None


def test_a_hello_that_breaks_off() -> None:
    """Another record where the hello should go on: nothing more will come."""
    broken = records(MESSAGE, 300)[: 5 + 300] + b"\x17\x03\x03\x00\x01a"
    assert stream_sighting(broken) == Sighting("tls", "www.video.example", complete=True)
    assert stream_sighting(records(MESSAGE, 3)[: 5 + 3] + bytes(9)) == Sighting(
        "tls", complete=True
    )


@pytest.mark.parametrize("at", range(4, len(MESSAGE), 7))
def test_a_hello_whose_lengths_lie(at: int) -> None:
    message = bytearray(MESSAGE)
    message[at] ^= 0xFF
    seen = hello_sighting(bytes(message), "tls")
    assert seen.protocol == "tls"
    assert seen.complete


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_handshake_header(data: bytes) -> None:
    hello = b"\x01" + vector(3, data)
    assert hello_sighting(hello, "tls").complete
    assert hello_sighting(hello[:-1], "tls").complete is False


def test_nothing_yet() -> None:
    assert stream.sighting(b"") == stream.sighting(b"\x16\x03\x01") == MORE
