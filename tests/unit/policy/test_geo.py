"""Countries and autonomous systems, out of MMDB files made here."""

from __future__ import annotations

import pickle
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from gateway.policy.geo import MmdbGeography, asn_in, country_in


def database(path: Path, records: dict[str, Any]) -> str:
    writer = MMDBWriter(6, "Test", ipv4_compatible=True)
    for network, record in records.items():
        writer.insert_network(IPSet([str(ip_network(network))]), record)
    writer.to_db_file(str(path))
    return str(path)


@pytest.fixture
def geography(tmp_path: Path) -> MmdbGeography:
    maxmind = {"country": {"iso_code": "NL"}, "registered_country": {"iso_code": "US"}}
    countries = {"192.0.2.0/24": maxmind, "2001:db8::/32": {"country_code": "de"}}
    numbers = {"192.0.2.0/24": {"autonomous_system_number": 64500}}
    return MmdbGeography(
        database(tmp_path / "country.mmdb", countries), database(tmp_path / "asn.mmdb", numbers)
    )


def test_addresses_of_both_families(geography: MmdbGeography) -> None:
    hosts = ["192.0.2.9", "198.51.100.1", "2001:db8::1", "fd00::1"]
    assert [geography.country(host) for host in hosts] == ["NL", "", "DE", ""]
    assert [geography.asn(host) for host in hosts] == [64500, 0, 0, 0]


def test_it_goes_to_workers_as_paths(geography: MmdbGeography) -> None:
    pickled = pickle.dumps(geography)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).country("192.0.2.1") == "NL"


def test_without_a_database_nothing_is_known() -> None:
    assert MmdbGeography().country("192.0.2.1") == ""
    assert MmdbGeography().asn("192.0.2.1") == 0


@pytest.mark.parametrize(
    ("record", "country", "asn"),
    [
        ({"registered_country": {"iso_code": "US"}}, "US", 0),
        ({"country": "FR", "asn": "AS64501"}, "FR", 64501),
        ({"country": "France", "asn": 64501}, "", 64501),
        ({"asn": "ASx"}, "", 0),
        (None, "", 0),
        ([1], "", 0),
    ],
)
def test_records_of_several_publishers(record: object, country: str, asn: int) -> None:
    assert (country_in(record), asn_in(record)) == (country, asn)


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=4),
        lambda inner: st.dictionaries(
            st.sampled_from(["country", "country_code", "iso_code", "asn", "x"]), inner, max_size=3
        ),
        max_leaves=5,
    )
)
def test_any_record(record: object) -> None:
    assert len(country_in(record)) in (0, 2)
    assert 0 <= asn_in(record) < 1 << 32
