"""The name that a DNS query asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.sniff.dns import question_name

HEAD = b"\xab\xcd\x01\x20\x00\x01\x00\x00\x00\x00\x00\x01"
LABELS = st.lists(st.from_regex(rb"[a-z0-9_-]{1,63}", fullmatch=True), max_size=3)


def query(*labels: bytes, end: bytes = b"\0\0\x01\0\x01") -> bytes:
    return HEAD + b"".join(bytes([len(label)]) + label for label in labels) + end


@given(LABELS)
def test_a_name_is_read(labels: list[bytes]) -> None:
    assert question_name(query(*labels)) == b".".join(labels).decode()
    assert question_name(query(*(label.upper() for label in labels))) == b".".join(labels).decode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        HEAD,
        query(b"a", end=b""),
        HEAD + b"\x05abc",
        HEAD + b"\xc0\x0c\0\x01\0\x01",
        HEAD + b"\x40" + b"a" * 64 + b"\0",
        query(*[b"a" * 63] * 4),
        query(b"\xff"),
        query(b"a").replace(b"\x01\x20", b"\x81\x80"),
    ],
)
def test_what_is_no_name(data: bytes) -> None:
    assert question_name(data) is None


@given(st.binary(max_size=400).map(lambda tail: HEAD + tail) | st.binary(max_size=100))
def test_any_bytes_have_a_name_or_none(data: bytes) -> None:
    name = question_name(data)
    assert name is None or (name == name.lower() and len(name) <= 253)
