"""Databases of countries and networks: read whole by another process before they are used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from gateway.config.load import parse
from gateway.errors import ConfigError
from gateway.rulesets.build import Compiler
from gateway.rulesets.geo import open_geography
from gateway.rulesets.store import RuleSetStore


def database(path: Path, country: str = "NL") -> bytes:
    writer = MMDBWriter(6, "Test", ipv4_compatible=True)
    for number in range(100):
        record = {"country": {"iso_code": country}, "number": number}
        writer.insert_network(IPSet([f"192.{number}.2.0/24"]), record)
    writer.to_db_file(str(path))
    return path.read_bytes()


def store(folder: Path, **geo: str) -> RuleSetStore:
    text = f"lan: {{interfaces: eth1}}\nstate_dir: s\ngeo: {geo}\nrules: [{{to: direct}}]\n"
    return RuleSetStore(parse(text, str(folder / "gateway.yaml"), resolve_secret=lambda *_: ""))


def country(folder: Path) -> str:
    geography = open_geography(store(folder, country="c.mmdb"))
    assert geography is not None
    return geography.country("192.7.2.1")


def test_files_are_beside_the_configuration(tmp_path: Path) -> None:
    database(tmp_path / "c.mmdb")
    assert country(tmp_path) == "NL"
    assert open_geography(store(tmp_path)) is None


def test_a_file_is_read_whole_once_for_each_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = database(tmp_path / "c.mmdb")
    assert country(tmp_path) == "NL"
    database(tmp_path / "c.mmdb", "DE")
    assert country(tmp_path) == "DE"
    (tmp_path / "c.mmdb").write_bytes(first)
    monkeypatch.setattr(Compiler, "verify", None)
    assert country(tmp_path) == "NL"


def test_nothing_that_happens_to_a_file_reaches_who_has_it_open(tmp_path: Path) -> None:
    database(tmp_path / "c.mmdb")
    geography = open_geography(store(tmp_path, country="c.mmdb"))
    assert geography is not None
    os.truncate(tmp_path / "c.mmdb", 10)
    assert geography.country("192.7.2.1") == "NL"  # else SIGBUS


def test_a_damaged_copy_is_made_anew(tmp_path: Path) -> None:
    database(tmp_path / "c.mmdb")
    assert country(tmp_path) == "NL"
    (copy,) = (tmp_path / "s" / "sets" / "compiled").iterdir()
    copy.write_bytes(b"")
    assert country(tmp_path) == "NL"


def test_a_copy_in_use_is_kept(tmp_path: Path) -> None:
    database(tmp_path / "c.mmdb")
    used = store(tmp_path, country="c.mmdb")
    open_geography(used)
    (copy,) = (tmp_path / "s" / "sets" / "compiled").iterdir()
    os.utime(copy, (1, 1))
    used.forget_old()
    assert copy.exists()
    store(tmp_path).forget_old()
    assert not copy.exists()


def test_bad_files_are_named_with_their_lines(tmp_path: Path) -> None:
    (tmp_path / "text.mmdb").write_text("country: NL")
    with pytest.raises(ConfigError) as raised:
        open_geography(store(tmp_path, country="text.mmdb", asn="missing.mmdb"))
    bad, missing = raised.value.problems
    assert (bad.line, bad.path) == (3, "geo.country")
    assert "text.mmdb: not an MMDB file" in bad.message
    assert (missing.path, "No such file" in missing.message) == ("geo.asn", True)


@pytest.mark.parametrize(("place", "value"), [(6675, 34), (6313, 145), (1619, 11), (326, 13)])
def test_damage_is_an_error_and_never_ends_this_process(
    tmp_path: Path, place: int, value: int
) -> None:
    """Of these the library's reader dies: by a bad address, and by an assertion."""
    data = bytearray(database(tmp_path / "c.mmdb"))
    data[place] = value
    (tmp_path / "c.mmdb").write_bytes(data)
    with pytest.raises(ConfigError, match=r"c\.mmdb: "):
        country(tmp_path)
