"""The SOCKS5 codec: bytes in pieces of any size, every reply, and what a hostile server may say."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError, UpstreamFailure
from gateway.flow import Endpoint
from gateway.wire.socks5 import (
    ClientHandshake,
    Credentials,
    Socks5Error,
    encode_address,
    encode_auth,
    encode_request,
)

V4 = Endpoint("203.0.113.7", 443)
V6 = Endpoint("2001:db8::7", 8080)
NAMED = Endpoint("server.example", 80)
LOGIN = Credentials("me", "secret-of-mine")

BOUND_V4 = b"\x01\xc0\x00\x02\x01\x12\x34"
BOUND_V6 = b"\x04" + bytes(16) + b"\x12\x34"
BOUND_NAME = b"\x03\x05proxy\x12\x34"
GRANTED = b"\x05\x00\x00"


def read_address(data: bytes) -> tuple[Endpoint, bytes]:
    """RFC 1928 section 5, read as a server reads it; and what follows."""
    kind, rest = data[0], data[1:]
    if kind == 1:
        host, rest = str(IPv4Address(rest[:4])), rest[4:]
    elif kind == 4:
        host, rest = str(IPv6Address(rest[:16])), rest[16:]
    else:
        assert kind == 3
        length = rest[0]
        host, rest = rest[1 : 1 + length].decode("ascii"), rest[1 + length :]
    return Endpoint(host, int.from_bytes(rest[:2], "big")), rest[2:]


def talk(handshake: ClientHandshake, *turns: bytes, step: int = 0) -> bytes:
    """Feed each turn of the server, whole or ``step`` bytes at a time; return what was sent."""
    sent = handshake.opening()
    for turn in turns:
        size = step or max(1, len(turn))
        for at in range(0, len(turn), size):
            sent += handshake.feed(turn[at : at + size])
    return sent


ANONYMOUS = ([b"\x05\x00"], b"\x05\x01\x00")
LOGGED_IN = (
    [b"\x05\x02", b"\x01\x00"],
    b"\x05\x02\x00\x02" + b"\x01\x02me\x0esecret-of-mine",
)


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("bound", [BOUND_V4, BOUND_V6, BOUND_NAME], ids=["v4", "v6", "name"])
@pytest.mark.parametrize("target", [V4, V6, NAMED], ids=["v4", "v6", "name"])
@pytest.mark.parametrize(
    ("credentials", "dialogue"),
    [(None, ANONYMOUS), (LOGIN, LOGGED_IN)],
    ids=["anonymous", "login"],
)
def test_a_connect_in_pieces_of_any_size(credentials, dialogue, target, bound, step):
    turns, before_the_request = dialogue
    handshake = ClientHandshake(target, credentials)
    sent = talk(handshake, *turns, GRANTED + bound, step=step)
    assert sent == before_the_request + encode_request(target)
    assert handshake.established
    assert handshake.surplus == b""


@pytest.mark.parametrize("bound", [BOUND_V4, BOUND_V6, BOUND_NAME], ids=["v4", "v6", "name"])
def test_every_split_of_reply_and_surplus(bound):
    """The flow's first bytes may come with any part of the reply."""
    stream = GRANTED + bound + b"220 welcome\r\n"
    for cut in range(len(stream) + 1):
        handshake = ClientHandshake(V4)
        talk(handshake, b"\x05\x00", stream[:cut], stream[cut:])
        assert handshake.established
        assert handshake.surplus == b"220 welcome\r\n", cut


def test_no_prefix_of_a_reply_is_a_reply():
    for bound in (BOUND_V4, BOUND_V6, BOUND_NAME):
        reply = GRANTED + bound
        for cut in range(len(reply)):
            handshake = ClientHandshake(V4)
            talk(handshake, b"\x05\x00", reply[:cut])
            assert not handshake.established, cut


def test_an_anonymous_server_is_used_although_there_is_a_login():
    handshake = ClientHandshake(V4, LOGIN)
    assert talk(handshake, b"\x05\x00") == b"\x05\x02\x00\x02" + encode_request(V4)


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (1, UpstreamFailure.UNREACHABLE),
        (2, UpstreamFailure.DENIED),
        (3, UpstreamFailure.UNREACHABLE),
        (4, UpstreamFailure.UNREACHABLE),
        (5, UpstreamFailure.REFUSED),
        (6, UpstreamFailure.TIMEOUT),
        (7, UpstreamFailure.PROTOCOL),
        (8, UpstreamFailure.PROTOCOL),
        *((code, UpstreamFailure.PROTOCOL) for code in (9, 0x5B, 0x80, 0xFF)),
    ],
)
@pytest.mark.parametrize("behind", [b"", b"\x00" + BOUND_V4], ids=["cut", "whole"])
def test_every_reply_code(code, failure, behind):
    handshake = ClientHandshake(V4)
    with pytest.raises(Socks5Error) as caught:
        talk(handshake, b"\x05\x00", bytes((5, code)) + behind)
    assert caught.value.failure is failure
    assert not handshake.established


@pytest.mark.parametrize(
    ("credentials", "turns", "failure", "words"),
    [
        (None, [b"\x04\x5a"], UpstreamFailure.PROTOCOL, "not SOCKS5"),
        (None, [b"HTTP/1.1 400"], UpstreamFailure.PROTOCOL, "not SOCKS5"),
        (None, [b"\x05\xff"], UpstreamFailure.DENIED, "wants a login"),
        (None, [b"\x05\x02"], UpstreamFailure.DENIED, "wants a login"),
        (LOGIN, [b"\x05\xff"], UpstreamFailure.DENIED, "neither login nor anonymous"),
        (None, [b"\x05\x01"], UpstreamFailure.PROTOCOL, "not offered"),
        (LOGIN, [b"\x05\x02", b"\x01\x01"], UpstreamFailure.DENIED, "refused username"),
        (None, [b"\x05\x00", b"\x04\x00\x00\x01"], UpstreamFailure.PROTOCOL, "version 0x04"),
        (None, [b"\x05\x00", GRANTED + b"\x02\x00"], UpstreamFailure.PROTOCOL, "type 0x02"),
        (None, [b"\x05\x00" + GRANTED + BOUND_V4], UpstreamFailure.PROTOCOL, "before it was asked"),
        (LOGIN, [b"\x05\x02\x01\x00"], UpstreamFailure.PROTOCOL, "before it was asked"),
        (LOGIN, [b"\x05\x02", b"\x01\x00\x05"], UpstreamFailure.PROTOCOL, "before it was asked"),
    ],
)
def test_a_server_that_does_not_play(credentials, turns, failure, words):
    handshake = ClientHandshake(V4, credentials)
    with pytest.raises(Socks5Error, match=words) as caught:
        talk(handshake, *turns)
    assert caught.value.failure is failure
    assert not handshake.established


def test_a_server_that_answers_the_login_with_its_own_version_is_borne():
    handshake = ClientHandshake(V4, LOGIN)
    assert talk(handshake, b"\x05\x02", b"\x05\x00").endswith(encode_request(V4))


def test_hints_name_the_cure():
    with pytest.raises(Socks5Error) as caught:
        talk(ClientHandshake(V4), b"\x05\xff")
    assert "set username and password" in caught.value.hint


@pytest.mark.parametrize(
    "credentials",
    [
        Credentials("", "x"),
        Credentials("x", ""),
        Credentials("x" * 256, "x"),
        Credentials("x", "é" * 128),
    ],
)
def test_a_login_that_does_not_fit_is_refused(credentials):
    with pytest.raises(ValueError, match="1 to 255 bytes"):
        ClientHandshake(V4, credentials)


@pytest.mark.parametrize("host", ["", "x" * 256])
def test_a_name_that_does_not_fit_is_refused(host):
    with pytest.raises(ValueError, match="does not fit"):
        encode_address(Endpoint(host, 80))


def test_secrets_do_not_show():
    shown = f"{LOGIN!r} {LOGIN} {[LOGIN]} {ClientHandshake(V4, LOGIN)!r}"
    assert LOGIN.password not in shown
    assert LOGIN.username in shown
    with pytest.raises(ValueError, match="password") as caught:
        encode_auth(Credentials("me", LOGIN.password * 20))
    assert LOGIN.password not in str(caught.value)


hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
    st.from_regex(r"[a-z][a-z0-9.-]{0,254}", fullmatch=True),
)


@given(host=hosts, port=st.integers(0, 0xFFFF))
def test_a_server_reads_the_address_that_was_meant(host, port):
    target = Endpoint(host, port)
    assert read_address(encode_address(target)) == (target, b"")


@given(username=st.text(min_size=1, max_size=60), password=st.text(min_size=1, max_size=60))
def test_a_server_reads_the_login_that_was_meant(username, password):
    raw = encode_auth(Credentials(username, password))
    name_end = 2 + raw[1]
    assert raw[0] == 1
    assert raw[2:name_end].decode() == username
    assert raw[name_end] == len(raw) - name_end - 1
    assert raw[name_end + 1 :].decode() == password


@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=300), st.sampled_from([b"\x05\x00", b"\x05\x02", b"\x01\x00"])
        ),
        max_size=12,
    ),
    login=st.booleans(),
)
def test_whatever_a_server_sends_only_protocol_errors_come_of_it(pieces, login):
    handshake = ClientHandshake(NAMED, LOGIN if login else None)
    asked = False
    try:
        for piece in pieces:
            asked = handshake.feed(piece).endswith(encode_request(NAMED)) or asked
    except ProtocolError:
        assert not handshake.established
    assert asked or not handshake.established, "established without having asked"


@given(stream=st.binary(max_size=60), cuts=st.lists(st.integers(1, 60), max_size=8))
def test_how_a_reply_is_cut_changes_nothing(stream, cuts):
    """The same bytes after the request, whole or in pieces, have the same end."""

    def outcome(pieces: list[bytes]) -> object:
        handshake = ClientHandshake(V4)
        handshake.feed(b"\x05\x00")
        try:
            for piece in pieces:
                handshake.feed(piece)
        except Socks5Error as error:
            return str(error)
        return handshake.established, handshake.surplus

    for start in (b"", GRANTED, GRANTED + b"\x03"):
        whole = start + stream
        edges = [0, *sorted({cut for cut in cuts if cut < len(whole)}), len(whole)]
        pieces = [whole[a:b] for a, b in pairwise(edges)]
        assert outcome(pieces) == outcome([whole])


PIPELINED = [
    (None, b"\x05\x01\x00", b"\x05\x00"),
    (Credentials("me", "secret"), b"\x05\x01\x02\x01\x02me\x06secret", b"\x05\x02\x01\x00"),
]


@pytest.mark.parametrize(("credentials", "before", "answers"), PIPELINED)
def test_pipelined_all_is_sent_at_once_and_every_split_of_the_answers_will_do(
    credentials, before, answers
):
    target = Endpoint("203.0.113.7", 443)
    answer = answers + b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00first"
    for cut in range(len(answer) + 1):
        handshake = ClientHandshake(target, credentials, pipelined=True)
        assert handshake.opening() == before + encode_request(target)
        assert handshake.feed(answer[:cut]) == b""
        assert handshake.feed(answer[cut:]) == b""
        assert handshake.established
        assert handshake.surplus == b"first"


def test_pipelined_a_method_that_was_not_offered_is_an_error():
    handshake = ClientHandshake(
        Endpoint("203.0.113.7", 443), Credentials("me", "secret"), pipelined=True
    )
    with pytest.raises(Socks5Error, match="not offered"):
        handshake.feed(b"\x05\x00")


#: Credentials, and the dialogue until the server has accepted us: what is sent, what is answered.
PREPARED = [
    (None, [(b"\x05\x01\x00", b"\x05\x00")]),
    (LOGIN, [(b"\x05\x02\x00\x02", b"\x05\x00")]),
    (LOGIN, [(b"\x05\x02\x00\x02", b"\x05\x02"), (encode_auth(LOGIN), b"\x01\x00")]),
]


def prepared(
    credentials: Credentials | None, dialogue: list[tuple[bytes, bytes]]
) -> ClientHandshake:
    """A handshake without a target, as far as it goes; every answer in single bytes."""
    handshake = ClientHandshake(None, credentials)
    sent = handshake.opening()
    for expected, answer in dialogue:
        assert sent == expected
        assert not handshake.accepted
        sent = b"".join(handshake.feed(answer[at : at + 1]) for at in range(len(answer)))
    assert sent == b""
    return handshake


@pytest.mark.parametrize(("credentials", "dialogue"), PREPARED)
def test_without_a_target_it_waits_before_the_request(credentials, dialogue):
    stream = GRANTED + BOUND_V6 + b"220 welcome\r\n"
    for cut in range(len(stream) + 1):
        handshake = prepared(credentials, dialogue)
        assert handshake.accepted
        assert not handshake.replied
        assert handshake.request(NAMED) == encode_request(NAMED)
        assert not handshake.replied
        assert handshake.feed(stream[:cut]) == b""
        assert handshake.replied == (cut > 0)
        assert handshake.feed(stream[cut:]) == b""
        assert handshake.replied
        assert handshake.established
        assert handshake.surplus == b"220 welcome\r\n", cut


@pytest.mark.parametrize(("credentials", "dialogue"), PREPARED)
@pytest.mark.parametrize("early", [b"\x05", GRANTED + BOUND_V4])
def test_a_server_that_speaks_before_the_request_does_not_play(credentials, dialogue, early):
    with pytest.raises(Socks5Error, match="before it was asked"):
        prepared(credentials, dialogue).feed(early)
    *before, (_, last) = dialogue
    handshake = ClientHandshake(None, credentials)
    for _, answer in before:
        handshake.feed(answer)
    with pytest.raises(Socks5Error, match="before it was asked"):
        handshake.feed(last + early)


def test_a_target_that_does_not_fit_leaves_it_waiting():
    handshake = prepared(*PREPARED[0])
    with pytest.raises(ValueError, match="does not fit"):
        handshake.request(Endpoint("", 80))
    assert handshake.request(V4) == encode_request(V4)
