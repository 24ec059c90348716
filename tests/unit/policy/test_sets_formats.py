"""Every format of lists: what is read, what is skipped and said, and bytes of any kind."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from maxminddb.const import Mode
from mmdb_writer import MMDBWriter
from netaddr import IPSet

from gateway.errors import GatewayError
from gateway.policy.rulesets import RuleSetData
from gateway.policy.sets import v2ray
from gateway.policy.sets.entries import Entries
from gateway.policy.sets.formats import ListSource, read_list
from gateway.policy.sets.mmdb import read_mmdb


def read(
    directory: Path, name: str, data: str | bytes, form: str = "auto", select: str = ""
) -> Any:
    path = directory / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_list(ListSource(path, form, select))


def said(
    directory: Path, name: str, data: str | bytes, **how: str
) -> tuple[str, set[str], list[str]]:
    """The format, the entries as we write them, and what was skipped."""
    contents = read(directory, name, data, **how)
    kept = RuleSetData.of("a", contents)
    entries = {str(pattern) for pattern in kept.names.patterns()} | set(map(str, kept.networks))
    return contents.format, entries, [str(each) for each in contents.entries.skipped]


CLASSICAL = [
    "DOMAIN,one.example", "DOMAIN-SUFFIX,two.example", "DOMAIN-KEYWORD,three",
    "IP-CIDR,192.0.2.0/24,no-resolve", "IP-CIDR6,2001:db8::/32", "DOMAIN-REGEX,^a{1,2}$",
    "DOMAIN-WILDCARD,a?.*.example",
]  # fmt: skip
CLASSICAL_MEANT = {
    "one.example", "+.two.example", "keyword:three", "192.0.2.0/24", "2001:db8::/32",
    "regex:^a{1,2}$", r"regex:^a.\..*\.example$",
}  # fmt: skip
OTHER_CLASSICAL = ["PROCESS-NAME,x", "DST-PORT,53", "GEOIP,CN", "PROCESS-NAME,y"]
OTHER_SAID = [
    "2 × PROCESS-NAME rule ({at}'PROCESS-NAME,x')",
    "1 × DST-PORT rule ({at1}'DST-PORT,53')",
    "1 × GEOIP rule ({at2}'GEOIP,CN')",
]


def test_clash_domain_behaviour_in_yaml(tmp_path: Path) -> None:
    text = "payload:\n  - 'a.example'\n  - \"+.b.example\"\n  - .c.example\n  - '*.d.example'\n"
    meant = {"a.example", "+.b.example", ".c.example", "*.d.example"}
    assert said(tmp_path, "p.yaml", text) == ("clash", meant, [])
    assert said(tmp_path, "p.txt", text) == ("clash", meant, [])


def test_clash_ipcidr_behaviour_in_text(tmp_path: Path) -> None:
    text = "# comment\n192.0.2.0/24\n2001:db8::/32\n198.51.100.7\n"
    meant = {"192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"}
    assert said(tmp_path, "p.txt", text) == ("text", meant, [])


@pytest.mark.parametrize("form", ["yaml", "odd yaml", "text"])
def test_clash_classical_behaviour(tmp_path: Path, form: str) -> None:
    rules = [*CLASSICAL, *OTHER_CLASSICAL]
    if form == "text":
        found = said(tmp_path, "p.list", "\n".join(rules))
    elif form == "yaml":
        found = said(tmp_path, "p.yaml", "payload:\n" + "".join(f"  - {r}\n" for r in rules))
    else:
        items = ", ".join(f'"{rule}"' for rule in rules)
        found = said(tmp_path, "p.yaml", f"name: x\npayload: [{items}]\nother: [1]\n")
    assert found[0] == ("text" if form == "text" else "clash")
    assert found[1] == CLASSICAL_MEANT
    assert len(found[2]) == 3
    assert found[2][0].startswith("2 × PROCESS-NAME rule (line ")


def test_clash_yaml_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(GatewayError, match="has no list `payload:`"):
        read(tmp_path, "a.yaml", "rules: []\n", form="clash")
    with pytest.raises(GatewayError, match="not YAML"):
        read(tmp_path, "a.yaml", "payload:\n  - 'a\n", form="clash")
    contents = read(tmp_path, "a.yaml", "payload:\n  - {a: b}\n  - &x a.example\n  - [c]\n  - *x\n")
    assert [str(s) for s in contents.entries.skipped] == ["3 × not text (line 2: '')"]


def test_plain_lists(tmp_path: Path) -> None:
    text = (
        "// c\n# comment\n! too\n\nA.Example.\n+.b.example # why\n10.0.0.0/8\n10.0.0.1/33\n"
        "full:c.example\ndomain:d.example @ads\nregexp:^x\\.\n"
        "keyword:ad\nnot a name\nbücher.example\n"
    )
    form, entries, skipped = said(tmp_path, "a.txt", text)
    assert form == "text"
    assert entries == {
        "a.example", "+.b.example", "10.0.0.0/8", "c.example", "+.d.example", "regex:^x\\.",
        "keyword:ad", "xn--bcher-kva.example",
    }  # fmt: skip
    assert skipped == [
        "2 × not a domain name (line 1: '// c')",
        "1 × not a CIDR or an address (line 8: '10.0.0.1/33')",
    ]


def test_hosts_files(tmp_path: Path) -> None:
    text = (
        "127.0.0.1 localhost\n::1 ip6-localhost\n0.0.0.0 ads.example track.example # both\n"
        "0.0.0.0 0.0.0.0\n::\tsix.example\nbroken\n"
    )
    form, entries, skipped = said(tmp_path, "hosts", text)
    assert form == "hosts"
    assert entries == {"ads.example", "track.example", "six.example"}
    assert skipped == [
        "1 × not a domain name (line 4: '0.0.0.0')",
        "1 × not a line of a hosts file (line 6: 'broken')",
    ]


def test_adguard_lists(tmp_path: Path) -> None:
    text = (
        "[Adblock Plus 2.0]\n! title\n# comment\n||ads.example^\n||x.example^$important\n"
        "||y.example^$third-party\n@@||good.example^\n||*.z.example^\n||ad*.example^\n/^ad[0-9]/\n"
        "plain.example\n0.0.0.0 host.example\n||192.0.2.7^\n||a.example/path\n|http://a.example|\n"
        "example.org##.ad\n"
    )
    form, entries, skipped = said(tmp_path, "filter.txt", text)
    assert form == "adguard"
    assert entries == {
        "+.ads.example", "+.x.example", ".z.example", r"regex:(?:^|\.)ad.*\.example$",
        "regex:^ad[0-9]", "plain.example", "host.example", "192.0.2.7/32",
    }  # fmt: skip
    assert skipped == [
        "1 × rule with modifiers (line 6: '||y.example^$third-party')",
        "1 × exception (line 7: '@@||good.example^')",
        "2 × rule for URLs (line 14: '||a.example/path')",
        "1 × rule for page elements (line 16: 'example.org##.ad')",
    ]


def test_dnsmasq_lists(tmp_path: Path) -> None:
    text = (
        "server=/a.example/192.0.2.1\naddress=/b.example/c.example/0.0.0.0\nlocal=/.d.example/\n"
        "ipset=/e.example/set\nserver=192.0.2.1\nserver=/#/192.0.2.1\ncache-size=1\n"
    )
    form, entries, skipped = said(tmp_path, "x.conf", text)
    assert form == "dnsmasq"
    assert entries == {f"+.{name}.example" for name in "abcde"}
    assert skipped == [
        "2 × other option of dnsmasq (line 5: 'server=192.0.2.1')",
        "1 × not a domain name (line 6: '#')",
    ]


def geosite() -> bytes:
    """Two lists, as v2fly's tools would make them."""
    made = v2ray.CLASSES["GeoSiteList"]()
    other = made.entry.add(code="OTHER")
    other.domain.add(type=2, value="other.example")
    site = made.entry.add(code="GEOLOCATION-!CN")
    site.domain.add(type=0, value="ads")
    site.domain.add(type=1, value=r"^a\d")
    site.domain.add(type=2, value="root.example").attribute.add(key="cn")
    site.domain.add(type=3, value="full.example")
    site.domain.add(type=9, value="new.example")
    return bytes(made.SerializeToString())


def geoip() -> bytes:
    made = v2ray.CLASSES["GeoIpList"]()
    entry = made.entry.add(code="NL")
    entry.cidr.add(ip=bytes([192, 0, 2, 0]), prefix=24)
    entry.cidr.add(ip=bytes.fromhex("20010db8") + bytes(12), prefix=32)
    entry.cidr.add(ip=b"abc", prefix=8)
    made.entry.add(code="ELSE", inverse=True).cidr.add(ip=bytes(4), prefix=1)
    return bytes(made.SerializeToString())


def test_geosite(tmp_path: Path) -> None:
    whole = {"keyword:ads", r"regex:^a\d", "+.root.example", "full.example"}
    skipped = ["1 × domain of type 9 ('new.example')"]
    for select in ("geolocation-!cn", "geosite:GEOLOCATION-!CN"):
        found = said(tmp_path, "geosite.dat", geosite(), select=select)
        assert found == ("geosite", whole, skipped)
    selected = said(tmp_path, "geosite.dat", geosite(), select="geolocation-!cn@cn")
    assert selected == ("geosite", {"+.root.example"}, [])
    _, others, _ = said(tmp_path, "geosite.dat", geosite(), select="geolocation-!cn@!cn")
    assert others == whole - {"+.root.example"}


def test_geoip(tmp_path: Path) -> None:
    found = said(tmp_path, "geoip.dat", geoip(), select="nl")
    assert found == ("geoip", {"192.0.2.0/24", "2001:db8::/32"}, ["1 × not a prefix ('616263')"])
    assert said(tmp_path, "x.bin", geoip(), form="geoip", select="geoip:nl") == found


@pytest.mark.parametrize(
    ("name", "data", "select", "message", "hint"),
    [
        ("geosite.dat", geosite(), "none", "has no list 'none'", "geolocation-!cn, other"),
        ("geosite.dat", geosite(), "", "which one is not said", "geolocation-!cn, other"),
        ("geosite.dat", b"\xff" * 20, "a", "not a v2ray data file", ""),
        ("geoip.dat", geoip(), "else", "which addresses are not meant", ""),
        ("a.txt", b"\x28\xb5\x2f\xfd12", "", "compressed (zstd", "text form"),
        ("a.txt", b"\x1f\x8b12", "", "compressed (gzip", ""),
        ("a.txt", b"a\0b", "", "is not text", "binary format"),
        ("a.txt", b"", "", "nothing in it can be used", ""),
        ("a.txt", b"!!!\nnothing here\n", "", "nothing in it can be used", "format"),
        ("a.mmdb", b"no database", "NL", "not an MMDB file", ""),
        ("a.mmdb", b"no database", "", "many countries", ""),
    ],
)
def test_what_cannot_be_read_says_why_and_what_to_do(
    tmp_path: Path, name: str, data: bytes, select: str, message: str, hint: str
) -> None:
    with pytest.raises(GatewayError) as caught:
        read(tmp_path, name, data, select=select)
    assert str(caught.value).startswith(str(tmp_path / name))
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mmdb") / "country.mmdb"
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Test")
    nl = {"country": {"iso_code": "NL"}, "continent": {"code": "EU"}}
    writer.insert_network(IPSet(["192.0.2.0/24", "2001:db8::/32"]), nl)
    writer.insert_network(IPSet(["198.51.100.0/24"]), {"country_code": "US"})
    writer.insert_network(IPSet(["203.0.113.0/24"]), {"autonomous_system_number": 64500})
    writer.to_db_file(str(path))
    return path


@pytest.mark.parametrize(
    ("select", "meant"),
    [
        ("nl", {"192.0.2.0/24", "2001:db8::/32"}),
        ("continent:EU", {"192.0.2.0/24", "2001:db8::/32"}),
        ("US", {"198.51.100.0/24"}),
        ("AS64500", {"203.0.113.0/24"}),
    ],
)
def test_mmdb(tmp_path: Path, database: Path, select: str, meant: set[str]) -> None:
    assert said(tmp_path, "a.db", database.read_bytes(), select=select) == ("mmdb", meant, [])


def test_mmdb_without_what_is_selected(database: Path) -> None:
    with pytest.raises(GatewayError, match="has nothing for 'XX'"):
        read_list(ListSource(database, select="XX"))


@settings(max_examples=60)
@given(st.randoms(use_true_random=False))
def test_a_damaged_mmdb(database: Path, chance: random.Random) -> None:
    """By the library's Python reader: the other one does not survive, and runs in a child."""
    data = bytearray(database.read_bytes())
    for _ in range(chance.randint(1, 5)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "a.mmdb"
        path.write_bytes(data)
        with suppress(GatewayError):
            read_mmdb(path, "NL", Entries(), lambda _: None, Mode.MEMORY)


FORMS = ["auto", "yaml", "text", "clash", "hosts", "adguard", "dnsmasq", "geosite", "geoip"]
LINES = st.sampled_from(
    ["payload:", "entries:", "- a.b", "||a.b^", "server=/a/", "0.0.0.0 a.b", "regex:(", "@@", ",",
     "DOMAIN,a", "*.*", "/(/", "&a [*a]", "- &b c", "- *b", "\t- x", "[", "{", "||$", "full:", "#"]
)  # fmt: skip
TEXTS = st.one_of(st.text(), st.lists(LINES).map("\n".join))


@settings(max_examples=300)
@given(
    st.one_of(st.binary(), TEXTS.map(str.encode)),
    st.sampled_from(FORMS),
    st.sampled_from(["a", "a.yaml"]),
)
def test_bytes_of_any_kind(data: bytes, form: str, name: str) -> None:
    with TemporaryDirectory() as directory, suppress(GatewayError):
        contents = read(Path(directory), name, data, form=form, select="a")
        assert RuleSetData.of("a", contents)


@given(st.binary(max_size=64), st.sampled_from([geosite, geoip]))
def test_damaged_v2ray_files(noise: bytes, make: Callable[[], bytes]) -> None:
    data = make()
    kind = make.__name__
    with TemporaryDirectory() as directory:
        for damaged in (data + noise, noise + data, data[: len(noise)], data[:40] + noise):
            with suppress(GatewayError):
                read(Path(directory), f"{kind}.dat", damaged, select="nl")
