from __future__ import annotations

import contextlib
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ApplyError
from gateway.kernel.ipset import parse_save, restore_lines
from gateway.plan.addresses import Family
from gateway.plan.model import AddressSet

SET = AddressSet("gw_x", Family.V4, (ip_network("10.0.0.0/8"), ip_network("192.0.2.7/32")))


def test_a_set_has_its_name_once_it_is_whole() -> None:
    assert list(restore_lines(SET)) == [
        "create gw_draft hash:net family inet maxelem 65536 -exist",
        "destroy gw_draft",
        "create gw_draft hash:net family inet maxelem 65536",
        "add gw_draft 10.0.0.0/8",
        "add gw_draft 192.0.2.7/32",
        "rename gw_draft gw_x",
    ]


def test_everything_is_stored_as_two_halves_and_read_back_as_one() -> None:
    everything = AddressSet("gw_all", Family.V6, (ip_network("::/0"),))
    adds = [line for line in restore_lines(everything) if line.startswith("add")]
    assert adds == ["add gw_draft ::/1", "add gw_draft 8000::/1"]
    saved = (
        "create gw_all hash:net family inet6 maxelem 65536\nadd gw_all ::/1\nadd gw_all 8000::/1"
    )
    assert parse_save(saved) == everything


def test_a_set_with_a_time_out_is_read_back_as_it_is() -> None:
    saved = (
        "create gw_alive4 hash:net family inet hashsize 1024 maxelem 65536 timeout 5"
        " bucketsize 12 initval 0x2d8112d1\n"
        "add gw_alive4 0.0.0.0/1 timeout 4\nadd gw_alive4 128.0.0.0/1 timeout 4\n"
    )
    halves = (ip_network("0.0.0.0/1"), ip_network("128.0.0.0/1"))
    alive = AddressSet("gw_alive4", Family.V4, halves, 5)
    assert parse_save(saved) == alive


@pytest.mark.parametrize(
    "text",
    [
        "",
        "create gw_x hash:ip family inet",
        "create gw_x hash:net family inet comment",
        "create gw_x hash:net family inet\nadd gw_x 10.0.0.1,tcp:80",
    ],
)
def test_a_foreign_set_with_our_prefix_is_an_error(text: str) -> None:
    with pytest.raises(ApplyError):
        parse_save(text)


@given(st.text())
def test_any_text_is_a_set_or_an_error(text: str) -> None:
    with contextlib.suppress(ApplyError):
        assert parse_save(text).name in text
