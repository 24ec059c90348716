"""How sets are kept: in memory and in mapped files, asked the same and answering the same."""

from __future__ import annotations

import pickle
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.domains import DomainKind, DomainPattern, domain_pattern
from gateway.errors import GatewayError
from gateway.policy.prefixes import IPV6_START, Network, PrefixSet, address_number, interval
from gateway.policy.rulesets import RuleSetData
from gateway.policy.sets.entries import Entries, read_interval
from gateway.policy.sets.formats import Contents
from gateway.policy.sets.intervals import IntervalSet
from gateway.policy.sets.names import NameSet, pattern_of, plain_key, trie_key
from gateway.policy.sets.networks import CompactNetworks, texts
from gateway.policy.sets.stored import open_stored, pack

networks = st.one_of(
    st.builds(
        lambda number, length: IPv4Network((number, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(0, 32),
    ),
    st.builds(
        lambda number, length: IPv6Network((number, length), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(0, 128),
    ),
)
labels = st.sampled_from(["a", "b", "www", "example", "com"])
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
lookups = st.sampled_from([DomainKind.EXACT, DomainKind.SUFFIX, DomainKind.BELOW, DomainKind.CHILD])
patterns = st.one_of(
    st.builds(DomainPattern, lookups, names),
    st.builds(DomainPattern, st.just(DomainKind.KEYWORD), labels),
    st.builds(DomainPattern, st.just(DomainKind.REGEX), st.sampled_from(["^a", "b$", "w{3}"])),
)


def meant(pattern: DomainPattern, name: str) -> bool:
    """The meaning, said in the simplest way."""
    asked, have = pattern.text.split("."), name.split(".")
    below = have[-len(asked) :] == asked
    match pattern.kind:
        case DomainKind.EXACT:
            return asked == have
        case DomainKind.SUFFIX:
            return below
        case DomainKind.BELOW:
            return below and len(have) > len(asked)
        case DomainKind.CHILD:
            return below and len(have) == len(asked) + 1
        case DomainKind.KEYWORD:
            return pattern.text in name
    return {"^a": name[0] == "a", "b$": name[-1] == "b", "w{3}": "www" in name}[pattern.text]


def contents(its: list[Network], wanted: list[DomainPattern]) -> Contents:
    return Contents("text", Entries.of([*its, *map(str, wanted)]))


@given(st.lists(networks, max_size=8), st.lists(networks, max_size=4))
def test_prefixes_in_flat_memory_are_the_same_set(
    its: list[Network], others: list[Network]
) -> None:
    plain, flat = PrefixSet.from_networks(its), IntervalSet.of(map(interval, its))
    assert tuple(flat.intervals()) == plain.intervals
    assert tuple(flat.networks()) == plain.networks
    assert len(flat) == len(plain.intervals)
    for network in (*its, *others):
        first, behind = interval(network)
        for number in (first, behind - 1, first - 1, behind):
            if 0 <= number < 1 << 32 or 0 <= number - IPV6_START < 1 << 128:
                assert flat.contains(number) == plain.contains(number), number


@given(st.lists(networks, max_size=8), st.integers(0, 2**32 - 1))
def test_networks_need_not_be_written_out(its: list[Network], number: int) -> None:
    inside = IntervalSet.of(map(interval, its))
    written = tuple(inside.networks())
    compact = CompactNetworks(inside)
    assert tuple(compact) == written
    assert len(compact) == len(written)
    assert [ip_network(text) for text in texts(compact)] == list(written)
    assert list(texts(written)) == list(map(str, written))
    assert compact.has(number) == any(IPv4Address(number) in each for each in written)
    assert compact == CompactNetworks(IntervalSet.of(map(interval, written)))
    assert hash(compact) == hash(CompactNetworks(IntervalSet.of(map(interval, written))))
    for version in (4, 6):
        its_own = CompactNetworks(inside.of_version(version))
        assert tuple(its_own) == tuple(each for each in written if each.version == version)
        assert (its_own == compact) == (len(its_own) == len(compact))


@given(st.lists(patterns, max_size=6), st.lists(names, min_size=1, max_size=6))
def test_names_match_as_patterns_mean(wanted: list[DomainPattern], asked: list[str]) -> None:
    entries = Entries.of(map(str, wanted))
    kept = NameSet.of_keys(entries.keys, entries.keywords, entries.regexes)
    assert set(kept.patterns()) == set(wanted)
    for name in asked:
        assert kept.matches(name) == any(meant(pattern, name) for pattern in wanted), name
        entry = kept.match(name)
        assert (entry is not None) == kept.matches(name)
        assert entry is None or (entry in wanted and meant(entry, name))


@given(patterns)
def test_patterns_are_read_as_they_are_written(pattern: DomainPattern) -> None:
    assert domain_pattern(str(pattern)) == pattern
    if pattern.kind not in (DomainKind.KEYWORD, DomainKind.REGEX):
        assert pattern_of(trie_key(pattern)) == pattern


@given(
    st.builds(
        "{}{}".format,
        st.sampled_from(["", "+.", ".", "*.", "*", "+", "..", "keyword:"]),
        st.text(st.sampled_from("ab1_-.A/: é"), max_size=12) | names,
    )
)
def test_the_short_way_reads_no_pattern_otherwise(text: str) -> None:
    key = plain_key(text)
    assert key is None or key == trie_key(domain_pattern(text))


@pytest.mark.parametrize("text", ["a.example", "+.a1.b-c.example", ".example", "*.a_b.example"])
def test_the_short_way_reads_what_most_lists_have(text: str) -> None:
    assert plain_key(text) is not None


def test_the_short_way_refuses_names_that_are_too_long() -> None:
    assert plain_key(".".join(["a" * 63] * 4)) is None


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("WWW.Example.", "www.example"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("a.*.b", r"regex:^a\.[^.]+\.b$"),
        ("*.a.b", "*.a.b"),
        ("*", "regex:^[^.]+$"),
    ],
)
def test_what_patterns_become(text: str, read: str) -> None:
    assert str(domain_pattern(text)) == read


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "+.",
        "a..b",
        "-a.b",
        "1.2.3",
        "a*.b",
        "a/b",
        "keyword:",
        "regex:(",
        "a" * 64,
        "\ufffd",
    ],
)
def test_what_is_no_pattern(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        domain_pattern(text)


@given(st.text())
def test_any_text_is_a_pattern_or_refused(text: str) -> None:
    try:
        pattern = domain_pattern(text)
    except ValueError:
        return
    assert domain_pattern(str(pattern)).kind is pattern.kind


@given(networks)
def test_networks_are_read_as_the_standard_library_does(network: Network) -> None:
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None:
        assert read_interval(str(network)) == interval(network)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:db8::1/32", "2001:db8::/32"),
        ("1.2.3.4/33", None),
        ("256.1.1.1", None),
        ("010.1.1.1", None),
        ("fe80::1%eth0", None),
        ("1.2.3", None),
    ],
)
def test_prefixes_of_lists(text: str, same: str | None) -> None:
    expected = None if same is None else read_interval(same)
    assert read_interval(text) == expected
    assert (expected is None) == (same is None)


@given(st.lists(networks, max_size=5), st.lists(patterns, max_size=5))
def test_a_stored_set_is_the_same_set(its: list[Network], wanted: list[DomainPattern]) -> None:
    plain = RuleSetData.of("a", contents(its, wanted))
    with NamedTemporaryFile() as file:
        path = Path(file.name)
        path.write_bytes(pack(contents(its, wanted)))
        stored = open_stored(path, "a")
        again = pickle.loads(pickle.dumps(stored))
        small = pickle.loads(pickle.dumps(plain))
    for each in (stored, again, small):
        assert each.networks == plain.networks
        assert set(each.names.patterns()) == set(wanted)
        assert len(each) == len(plain)


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    path = tmp_path / "a.set"
    its = [IPv4Network((number << 12, 24)) for number in range(50_000)]
    path.write_bytes(pack(Contents("text", Entries.of([*its, "+.a.example"]))))
    return path


def test_another_process_is_sent_no_more_than_the_place(compiled: Path) -> None:
    stored = open_stored(compiled, "a")
    assert len(pickle.dumps(stored)) < 1000
    assert stored.prefixes.contains(address_number("0.0.16.5"))
    assert not stored.prefixes.contains(address_number("0.0.17.5"))
    assert stored.names.matches("www.a.example")


@pytest.mark.parametrize("at", [0, 10, 45, 100, 5000, -5])
def test_a_damaged_file_is_refused(compiled: Path, at: int) -> None:
    data = bytearray(compiled.read_bytes())
    data[at] ^= 0x10
    compiled.write_bytes(data)
    with pytest.raises(GatewayError, match="not a compiled rule set"):
        open_stored(compiled, "a")


@pytest.mark.parametrize("size", [0, 5, 40, 100, 1000])
def test_a_short_file_is_refused(compiled: Path, size: int) -> None:
    compiled.write_bytes(compiled.read_bytes()[:size])
    with pytest.raises(GatewayError):
        open_stored(compiled, "a")


def test_a_file_that_was_replaced_is_not_taken_for_the_one_that_was_sent(compiled: Path) -> None:
    sent = pickle.dumps(open_stored(compiled, "a"))
    compiled.write_bytes(pack(Contents("text", Entries.of(["b.example"]))))
    with pytest.raises(GatewayError, match="not a compiled rule set"):
        pickle.loads(sent)
