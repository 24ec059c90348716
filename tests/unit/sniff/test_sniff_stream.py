"""What the first bytes of other TCP clients show; and of any bytes at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sniff.sighting import UNKNOWN, Sighting
from gateway.sniff.stream import sighting

CURL = (
    b"GET /index.html HTTP/1.1\r\nUser-Agent: curl/8.5.0\r\nHost: www.video.example\r\n"
    b"Accept: */*\r\n\r\n"
)
VIDEO = Sighting("http", "www.video.example", complete=True)


def test_the_host_of_a_request() -> None:
    assert sighting(CURL) == VIDEO
    end = CURL.index(b"\r\nAccept") + 2
    for cut in range(end):
        assert not sighting(CURL[:cut]).complete, cut
        assert not sighting(CURL[:cut]).name, cut
    assert sighting(CURL[:end]) == VIDEO


@pytest.mark.parametrize(
    ("host", "name"),
    [
        (b"a.example:8080", "a.example"),
        (b"  A.EXAMPLE.  ", "a.example"),
        (b"192.0.2.7", ""),
        (b"[2001:db8::1]:80", ""),
        (b"a.example:80:80", ""),
        (b"a b", ""),
        (b"", ""),
        (b"%61.example", ""),
    ],
)
def test_hosts(host: bytes, name: str) -> None:
    request = b"POST / HTTP/1.0\r\nhOsT:" + host + b"\r\n\r\n"
    assert sighting(request) == Sighting("http", name, complete=True)


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (b"GET http://a.example/x HTTP/1.1\r\nHost: b.example\r\n\r\n", "a.example"),
        (b"GET http://me:you@a.example:81?x HTTP/1.1\r\n", "a.example"),
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: b.example\r\n\r\n", "a.example"),
        (b"OPTIONS * HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example"),
        (b"GET /?u=http://b.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example"),
        (b"GET / HTTP/1.1\nHost: a.example\n\n", "a.example"),
        (b"M-SEARCH / HTTP/1.1\r\nHost: a.example\r\n\r\n", "a.example"),
        (b"GET / HTTP/1.0\r\n\r\nHost: b.example\r\n", ""),
        (b"GET / HTTP/1.0\r\nX-Host: b.example\r\n\r\n", ""),
        (b"GET / HTTP/1.0\r\nX: 1\r\n\r\n", ""),
    ],
)
def test_requests(request_: bytes, name: str) -> None:
    assert sighting(request_) == Sighting("http", name, complete=True)


def test_http2_in_plain_text() -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    assert sighting(preface + b"\x00\x00\x12") == Sighting("http2", "", complete=True)
    for cut in range(len(preface)):
        assert not sighting(preface[:cut]).complete


@pytest.mark.parametrize(
    ("data", "protocol"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "ssh"),
        (b"\x13BitTorrent protocol" + bytes(8), "bittorrent"),
        (b"\x03\x00\x00\x13\x0e\xe0\x00\x00\x00\x00\x00\x01\x00\x08\x00\x03\x00\x00\x00", "rdp"),
        (b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(12), "stun"),
        (b"\x00\x1d\xab\xcd\x01\x00\x00\x01" + bytes(6) + b"\x01a\x00\x00\x01\x00\x01", "dns"),
    ],
)
def test_other_protocols(data: bytes, protocol: str) -> None:
    seen = [sighting(data[:end]) for end in range(len(data) + 1)]
    assert seen[-1] == Sighting(protocol, complete=True)
    first = next(end for end, each in enumerate(seen) if each.complete)
    assert all(each == seen[-1] for each in seen[first:])
    assert all(not each.protocol for each in seen[:first])


@pytest.mark.parametrize(
    "data",
    [b"USER me\r\n", b"EHLO a.example\r\n", b"hello\n", bytes(20), b"\xff" * 20, b"GET /\r\n",
     b"GET / HTTP/3\r\n", b"\x03\x00\x00\x13\x0e\xd0", b"\x00\x05\x00\x00\x00"],
)  # fmt: skip
def test_nobody_knows_it(data: bytes) -> None:
    assert sighting(data) == UNKNOWN


BEGINNINGS = [
    b"", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", CURL, CURL[:40], b"GET ", b"SSH",
    b"PRI * HTTP/2.0\r\n", b"\x13Bit", b"\x03\x00", b"\x00\x01\x00\x00\x21\x12", b"\x00\x1d",
]  # fmt: skip


@given(st.sampled_from(BEGINNINGS), st.binary(max_size=300))
def test_any_bytes(beginning: bytes, rest: bytes) -> None:
    """An answer to anything; and one that is complete stays, whatever follows."""
    data = beginning + rest
    done: Sighting | None = None
    for end in range(len(data) + 1):
        seen = sighting(data[:end])
        assert seen.name == seen.name.lower()
        assert seen.protocol or not seen.name
        if done is not None:
            assert seen == done
        elif seen.complete:
            done = seen
