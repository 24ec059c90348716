"""Whom this machine's resolver asks."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.resolvers import name_servers, read_resolvers

STUB = "nameserver 127.0.0.53\noptions edns0\n"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("nameserver 192.0.2.53\n", ("192.0.2.53",)),
        ("# nameserver 1.1.1.1\nsearch lan\n\tnameserver\tfe80::1%eth0\n", ("fe80::1",)),
        ("nameserver 1.1.1.1 # a router\nnameserver 2001:DB8::1\n", ("1.1.1.1", "2001:db8::1")),
        ("nameserver 1.1.1.1\n" * 2, ("1.1.1.1",)),
        ("".join(f"nameserver 1.1.1.{n}\n" for n in range(4)), ("1.1.1.0", "1.1.1.1", "1.1.1.2")),
        ("nameserver\nnameserver ns.example\nnameservers 1.1.1.1\n", ()),
    ],
)
def test_resolv_conf(text: str, found: tuple[str, ...]) -> None:
    assert name_servers(text) == found


@given(
    st.text(max_size=100)
    | st.lists(st.sampled_from(["nameserver", " ", "\n", "1.2.3.4"])).map("".join)
)
def test_any_text_has_addresses_or_none(text: str) -> None:
    assert all(ip_address(found) for found in name_servers(text))


@pytest.mark.parametrize(
    ("first", "behind", "found"),
    [
        ("nameserver 192.0.2.53\n", STUB, ("192.0.2.53",)),
        (STUB, "nameserver 192.0.2.53\n", ("192.0.2.53",)),
        (STUB, "", ("127.0.0.53",)),
        ("", "", ("127.0.0.1",)),
    ],
)
def test_a_stub_is_looked_behind(
    tmp_path: Path, first: str, behind: str, found: tuple[str, ...]
) -> None:
    files = tmp_path / "resolv.conf", tmp_path / "behind"
    for file, text in zip(files, (first, behind), strict=True):
        file.write_text(text)
    assert read_resolvers(*files) == found


def test_no_file_at_all(tmp_path: Path) -> None:
    assert read_resolvers(tmp_path / "none", tmp_path / "neither") == ("127.0.0.1",)
