"""Loading: every mistake is found at once, on its line, with a cure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config.load import Loaded, load, parse
from gateway.config.outbounds import Socks5Outbound
from gateway.config.schema import Config
from gateway.config.shipped import shipped_names
from gateway.errors import ConfigError, GatewayError, Problem

GOLDEN = Path(__file__).parents[2] / "golden" / "config"
SHIPPED = frozenset({"private", "public-dns"})
END = "rules:\n  - {to: direct}\n"
LAN = "lan: {interfaces: eth1}\n"


def no_secret(tag: str, name: str) -> str:
    raise GatewayError(f"no secret {name}", "set it")


def parsed(text: str) -> Loaded:
    return parse(text, "t.yaml", resolve_secret=no_secret, shipped=SHIPPED)


def problems(text: str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        parsed(text)
    return list(caught.value.problems)


def only(text: str) -> Problem:
    found = problems(text)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def test_the_whole_example_of_the_design_loads() -> None:
    config = parse(
        """
lan:
  interfaces: [eth1, wlan0]
  subnets:
    kids:   [192.168.20.0/24, fd00:20::/64]
    office: 192.168.10.0/24
  this_machine: no
inbound: {tcp: tproxy, udp: off, icmp: direct, backend: auto, on_failure: closed}
outbounds:
  home: {type: socks5, server: 203.0.113.5, username: me, password: !env HOME_SOCKS}
  vpn: {type: direct, interface: wg0}
rules:
  - {destination: [private, 198.51.100.7], to: direct}
  - {subnet: kids, port: [25, 6000-6063], to: reject}
  - {to: home}
""",
        "t.yaml",
        resolve_secret=lambda tag, name: f"{tag} {name}",
        shipped=SHIPPED,
    ).config
    home = config.outbounds["home"]
    assert isinstance(home, Socks5Outbound)
    assert home.password is not None
    assert home.password.get_secret_value() == "!env HOME_SOCKS"
    assert "HOME_SOCKS" not in repr(config)
    assert config.inbound.udp == "off"  # not false, as YAML 1.1 has it
    assert config.lan.this_machine is False
    assert [str(entry) for entry in config.rules[0].destination] == ["private", "198.51.100.7/32"]
    assert config.rules[1].port == (25, "6000-6063")


def test_many_errors_in_one_file_are_all_reported(golden: Callable[[str, str], None]) -> None:
    text = (GOLDEN / "many_errors.yaml").read_text()
    found = problems(text)
    golden("config/many_errors.txt", "\n".join(map(str, found)) + "\n")
    places = [(problem.line, problem.column) for problem in found]
    assert places == sorted(places)
    assert "hunter2" not in "".join(map(str, found))


#: Text, then the one problem: line, column, path, value, part of the message, part of the cure.
CASES: list[tuple[str, int, int, str, str, str, str]] = [
    ("lan: {interfaces: eth1}\nrule:\n  - {to: direct}\n" + END, 2, 1, "rule", "rule",
     "unknown key", "did you mean rules? keys here: "),
    (LAN + "log: {level: loud}\n" + END, 2, 14, "log.level", "loud", "choices", "debug, error"),
    (LAN + "timeouts: {idle: soon}\n" + END, 2, 18, "timeouts.idle", "soon", "number", "seconds"),
    (LAN + "timeouts: {idle: -1}\n" + END, 2, 18, "timeouts.idle", "-1", "greater than 0",
     "no byte moves"),
    (LAN + "inbound: 5\n" + END, 2, 10, "inbound", "5", "must be a mapping", "key: value"),
    (LAN + "outbounds:\n" + END, 2, 11, "outbounds", "nothing", "must be a mapping", "leave"),
    (LAN + "rules: []\n", 2, 8, "rules", "a list", "at least one", ""),
    (LAN + "rules: {to: direct}\n", 2, 8, "rules", "a mapping", "must be a list", "- "),
    (LAN + "rules: [{}]\n", 2, 9, "rules[0].to", "", "is missing", "an outbound's name"),
    (END, 1, 1, "lan", "", "is missing", "whose traffic is diverted"),
    (LAN, 1, 1, "rules", "", "is missing", "first match wins"),
    ("lan: {interfaces: eth1, subnets: {a: 10.0.0.0/33}}\n" + END, 1, 38, "lan.subnets.a",
     "10.0.0.0/33", "no longer than /32", "/32"),
    ("lan: {interfaces: eth1, subnets: {a: fd00::1/64}}\n" + END, 1, 38, "lan.subnets.a",
     "fd00::1/64", "host bits", "did you mean fd00::/64?"),
    ("lan: {interfaces: eth1, subnets: {a: 5}}\n" + END, 1, 38, "lan.subnets.a", "5",
     "not a CIDR", "192.168.1.0/24"),
    ("lan: {interfaces: eth1, subnets: {a: 'fe80::1%eth0'}}\n" + END, 1, 38, "lan.subnets.a",
     "fe80::1%eth0", "no zone", "%eth0"),
    ("lan: {interfaces: eth1, subnets: {a: '::ffff:10.0.0.0/104'}}\n" + END, 1, 38,
     "lan.subnets.a", "::ffff:10.0.0.0/104", "never matches", "10.0.0.0/8"),
    (LAN + "rules:\n  - {destination: 10.0.0.300, to: direct}\n  - {to: direct}\n", 3, 19,
     "rules[0].destination", "10.0.0.300", "not a CIDR", "192.168.1.5"),
    (LAN + "rules:\n  - {port: true, to: direct}\n  - {to: direct}\n", 3, 12,
     "rules[0].port", "true", "not a port", "443"),
    (LAN + "rules:\n  - {port: 0, to: direct}\n  - {to: direct}\n", 3, 12, "rules[0].port", "0",
     "between 1 and 65535", "443"),
    (LAN + "outbounds:\n  a: {type: direct}\n  a: {type: reject}\n" + END, 4, 3, "outbounds.a",
     "", "twice, first on line 3", "keep one"),
    (LAN + "outbounds: {a: {type: socks5, server: s, username: u, password: !env X}}\n" + END,
     2, 65, "outbounds.a.password", "", "no secret X", "set it"),
    (LAN + "outbounds: {a: {type: socks5, server: s, password: [a], username: u}}\n" + END,
     2, 52, "outbounds.a.password", "", "must be text", ""),
    (LAN + "log: !!set {a}\n" + END, 2, 6, "log", "", "tag", "!env"),
    ("? [a]\n: b\n" + LAN + END, 1, 3, "the file", "", "a key must be text", ""),
    (LAN + "log: &a {level: *a}\n" + END, 2, 6, "log.level", "", "alias of what", ""),
    ("", 1, 1, "the file", "", "is empty", "gateway init"),
    ("# nothing\n", 1, 1, "the file", "", "is empty", "gateway init"),
    ("- a\n", 1, 1, "the file", "a list", "must be a mapping", ""),
    ("a: b: c\n", 1, 5, "the file", "", "not YAML: mapping values", "quotes"),
    ("a: [b\n", 2, 1, "the file", "", "not YAML", "brackets"),
    ("a: b\n---\na: c\n", 2, 1, "the file", "", "another document", "---"),
    ("a: b\nc: \x07\n", 2, 4, "the file", "", "U+0007", ""),
    ("[" * 200_000, 1, 33, "the file", "", "deeper than 32", ""),
    (LAN + "log: *nobody\n", 2, 6, "the file", "", "undefined alias", ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "line", "column", "path", "value", "message", "cure"),
    CASES,
    ids=[f"{case[3]}: {case[5]}" for case in CASES],
)
def test_one_mistake_one_problem(
    text: str, line: int, column: int, path: str, value: str, message: str, cure: str
) -> None:
    found = only(text)
    assert (found.line, found.column, found.path, found.value) == (line, column, path, value)
    assert message in found.message
    assert cure in found.cure
    assert found.file == "t.yaml"


def test_a_bad_value_does_not_hide_mistakes_elsewhere() -> None:
    found = problems(
        "lan: {interfaces: [a b], this_machne: true}\n"
        "inbound: {port: x}\n"
        "outbounds: {h: {type: sock5}, b b: {type: nope}}\n"
        "rules:\n"
        "  - {source: 1.2.3.4/8, to: h}\n"
        "  - {to: hh}\n"
        "  - {to: direct}\n"
    )
    assert [(problem.line, problem.path) for problem in found] == [
        (1, "lan.interfaces[0]"),
        (1, "lan.this_machne"),
        (2, "inbound.port"),
        (3, "outbounds.h.type"),
        (3, "outbounds.b b"),
        (3, "outbounds.b b.type"),
        (5, "rules[0].source"),
        (6, "rules[1].to"),
        (7, "rules[2]"),
    ]


def test_a_misspelt_section_brings_no_second_hand_problems() -> None:
    assert [
        p.path for p in problems(LAN + "outbound: {a: {type: direct}}\nrules: [{to: a}]\n")
    ] == ["outbound"]


def test_an_alias_is_read_once_however_often_it_stands_there() -> None:
    text = "a0: &a0 [x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 25)
    )
    assert {problem.message for problem in problems(LAN + text + END)} == {"unknown key"}


def test_a_secret_is_never_shown() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            "lan: {interfaces: eth1, subnets: {a: !env A}}\n"
            "outbounds: {h: {type: socks5, server: !file S, passwrd: hunter2, port: !env P}}\n"
            + END,
            "t.yaml",
            resolve_secret=lambda *_: "hunter2/",
        )
    text = str(caught.value)
    assert len(caught.value.problems) == 3
    assert "hunter2" not in text


class TestFiles:
    def test_a_file_and_its_secrets(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "password").write_text("s3cret\n")
        (tmp_path / "user").write_text("me\n")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        path = tmp_path / "gateway.yaml"
        path.write_bytes(
            b"\xef\xbb\xbf" + LAN.encode() + b"outbounds:\n  h:\n    type: socks5\n    server: s\n"
            b"    password: !file password\n    username: !credential user\n" + END.encode()
        )
        loaded = load(path)
        outbound = loaded.config.outbounds["h"]
        assert isinstance(outbound, Socks5Outbound)
        assert outbound.username == "me"
        assert outbound.password is not None
        assert outbound.password.get_secret_value() == "s3cret"

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "does not exist"), (b"a: \xff\n", "not UTF-8: byte 4 is 0xff"), (b"", "is empty")],
    )
    def test_unreadable(self, tmp_path: Path, content: bytes | None, message: str) -> None:
        path = tmp_path / "gateway.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            load(path)
        (problem,) = caught.value.problems
        assert message in problem.message
        assert problem.file == str(path)
        assert problem.cure

    def test_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"is a directory\n.*give the path of a file"):
            load(tmp_path)

    def test_shipped_rule_sets_are_known(self, tmp_path: Path) -> None:
        path = tmp_path / "gateway.yaml"
        path.write_text(LAN + "rules: [{destination: private, to: direct}, {to: reject}]\n")
        assert load(path).config.rules[0].destination == ("private",)
        assert shipped_names() >= {"private", "bogons", "lan-discovery", "public-dns"}


def test_the_json_schema_agrees_with_the_loader() -> None:
    schema = Config.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    text = LAN + "rules:\n  - {subnet: a, port: [443, 1-2], destination: [a, 10.0.0.0/8], to: b}\n"
    jsonschema.validate(yaml.safe_load(text), schema)
    for bad in ("lan: {interface: eth1}\n" + END, LAN + "rules: [{to: 5}]\n"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(yaml.safe_load(bad), schema)


def test_every_key_is_described() -> None:
    schema = Config.model_json_schema()
    parts = [schema, *schema["$defs"].values()]
    undescribed = [
        f"{part['title']}.{key}"
        for part in parts
        for key, value in part.get("properties", {}).items()
        if "description" not in value and key != "type"
    ]
    assert undescribed == []


# --- nothing but ConfigError, whatever the input ---------------------------------------------


def loads_or_explains(text: str) -> None:
    found: tuple[Problem, ...] = ()
    try:
        parsed(text)
    except ConfigError as error:
        found = error.problems or pytest.fail("refused without a reason")
    for problem in found:
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.message


@given(st.text())
@example("a: 1_000\n")
@example("9" * 5000)
def test_any_text(text: str) -> None:
    loads_or_explains(text)


@given(st.binary())
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load(path)


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["10.0.0.0/8", "10.0.0.1/8", "::/0", "443-80", "direct", "eth1", "socks5"]),
)  # fmt: skip
KEYS = st.sampled_from(
    ["lan", "interfaces", "subnets", "outbounds", "rules", "to", "type", "server", "source",
     "destination", "port", "direct", "timeouts", "marks", "base", "rule_sets", "entries", "a b"]
)  # fmt: skip
ANYTHING = st.recursive(
    VALUES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=6),
    max_leaves=25,
)
SECTION = st.dictionaries(KEYS, ANYTHING, max_size=4)
NEAR = st.fixed_dictionaries(
    {"lan": SECTION | st.just({"interfaces": "eth1"}), "rules": st.lists(SECTION, max_size=4)},
    optional={
        "outbounds": st.dictionaries(KEYS, SECTION, max_size=3) | ANYTHING,
        "rule_sets": st.dictionaries(KEYS, SECTION, max_size=3) | ANYTHING,
        "inbound": SECTION | ANYTHING,
        "marks": SECTION | ANYTHING,
    },
)


@given(ANYTHING | NEAR)
def test_any_structure(value: Any) -> None:
    loads_or_explains(yaml.safe_dump(value))


def test_an_unknown_section_does_not_hide_what_is_wrong_across_keys() -> None:
    text = "lan: {interfaces: [eth1]}\napi: {}\noutbounds: {}\nrules: [{to: hme}]\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, "t.yaml", resolve_secret=lambda *_: "")
    assert [problem.path for problem in caught.value.problems] == ["api", "rules[0].to"]


def test_a_misspelt_section_is_not_followed_by_all_that_it_would_have_named() -> None:
    text = "lan: {interfaces: [eth1]}\noutbuonds: {home: {type: direct}}\nrules: [{to: home}]\n"
    with pytest.raises(ConfigError) as caught:
        parse(text, "t.yaml", resolve_secret=lambda *_: "")
    assert [problem.path for problem in caught.value.problems] == ["outbuonds"]
