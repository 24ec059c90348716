"""Who looks after the groups: real probes of real servers on loopback, and what is made of them."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway import keeper as keeper_module
from gateway.config.schema import Config
from gateway.errors import ChoiceError, GatewayError
from gateway.flow import Endpoint
from gateway.groups.standing import Standing
from gateway.keeper import GroupKeeper, choices_of, read_choices, write_choices
from gateway.outbound.board import GroupReport
from gateway.probing import probe

SOCKS = {"type": "socks5", "server": "203.0.113.5"}
OK = b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n"


def config(**groups: dict[str, Any]) -> Config:
    outbounds = {"home": SOCKS, "away": SOCKS, **groups}
    return Config.model_validate(
        {"lan": {"interfaces": "eth1"}, "outbounds": outbounds, "rules": [{"to": "direct"}]}
    )


class Web:
    """A server that answers every request with the same bytes; ``asked`` are the requests."""

    def __init__(self, answer: bytes = OK) -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self._serving: set[Any] = set()

    async def __aenter__(self) -> Web:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for _turn in range(10):
            await asyncio.sleep(0)  # whoever was accepted last is in no task yet
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.current_task())
        self.asked.append(await reader.read(65536))
        writer.write(self.answer)
        if not self.answer:
            await reader.read()
        writer.close()
        await writer.wait_closed()

    async def connect(self, target: Endpoint) -> socket.socket:
        """Whatever the target is: this server. Needs no thread, which would not be cancelled."""
        del target
        sock = socket.socket()
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except BaseException:
            sock.close()
            raise
        sock.settimeout(10)
        return sock


def test_a_probe_asks_for_the_url_and_wants_a_good_answer() -> None:
    async def scenario() -> None:
        async with Web() as web:
            took = await probe("http://www.a.example:81/x?y=1", 10, web.connect)
            assert 0 < took < 10
            assert web.asked[0].startswith(b"GET /x?y=1 HTTP/1.1\r\n")
            assert b"\r\nHost: www.a.example:81\r\n" in web.asked[0]

    asyncio.run(scenario())


def test_a_probe_needs_no_thread_of_the_loop() -> None:
    """Which are for the kernel's state, and may all be waiting."""
    busy = threading.Event()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with Web() as web:
            loop.set_default_executor(ThreadPoolExecutor(1))
            waiting = loop.run_in_executor(None, busy.wait, 30)
            try:
                await probe("http://a.example/", 10, web.connect)
                assert not waiting.done()
            finally:
                busy.set()

    asyncio.run(scenario())


async def _refuse(target: Endpoint) -> socket.socket:
    raise GatewayError(f"{target} by outbound home: denied")


@pytest.mark.parametrize(
    ("answer", "url", "said"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "http://a.example/", "status 302"),
        (b"HTTP/1.1 503 No\r\n\r\n", "http://a.example/", "status 503"),
        (b"SSH-2.0-x\r\n", "http://a.example/", "a.example: SSH-2.0-x"),
        (b"", "http://a.example/", "no answer within 0.2 s"),
        (b"x", "https://a.example/", "a.example: "),
        (OK, "http://[bad/", "the server: "),
    ],
)
def test_a_bad_answer_is_said_in_a_sentence(answer: bytes, url: str, said: str) -> None:
    async def scenario() -> None:
        async with Web(answer) as web:
            with pytest.raises(GatewayError, match=said.replace("[", r"\[")):
                await probe(url, 0.2 if not answer else 10, web.connect)

    asyncio.run(scenario())


def test_an_outbound_that_cannot_be_had_is_a_bad_probe() -> None:
    with pytest.raises(GatewayError, match="by outbound home: denied"):
        asyncio.run(probe("http://a.example/", 10, _refuse))


class Plane:
    """A data plane that reports what the test says, and notes how groups stand."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.told: list[dict[str, Standing]] = []
        self.well: list[tuple[str, ...]] = []

    async def group_report(self) -> GroupReport:
        return GroupReport(dict(self.used), dict(self.failures))

    async def stand(self, groups: dict[str, Standing], well: tuple[str, ...]) -> None:
        self.told.append(groups)
        self.well.append(well)

    def takes(self, group: str) -> tuple[str, ...]:
        return self.told[-1][group].now if self.told else ()


class House:
    """A keeper with servers behind its outbounds."""

    def __init__(self, path: Path, its: Config) -> None:
        self.config = its
        self.plane = Plane()
        self.keeper = GroupKeeper(path / "groups.json")
        self.webs: dict[str, Web] = {}

    def connect(self, name: str) -> Callable[[Endpoint], Awaitable[socket.socket]]:
        return self.webs[name].connect if name in self.webs else _refuse

    async def live(self, scenario: Callable[[], Awaitable[None]]) -> None:
        async with Web() as self.webs["home"], Web() as self.webs["away"]:
            running = asyncio.create_task(
                self.keeper.run(self.plane, lambda: self.config, self.connect)
            )
            try:
                await asyncio.wait_for(scenario(), 30)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    async def until(self, condition: Callable[[], object]) -> None:
        while not condition():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., House]:
    monkeypatch.setattr(keeper_module, "LOOK_S", 0.02)
    return lambda **groups: House(tmp_path, config(**groups))


def auto(**probe_keys: Any) -> dict[str, Any]:
    return {"type": "fallback", "members": ["home", "away"], "probe": {"every": 1, **probe_keys}}


def test_a_member_goes_down_and_comes_back(house: Callable[..., House], caplog: Any) -> None:
    one = house(auto=auto(lazy=False))

    async def scenario() -> None:
        await one.until(lambda: one.plane.takes("auto") == ("home",))
        one.webs["home"].answer = b"HTTP/1.1 500 No\r\n\r\n"
        await one.until(lambda: one.plane.takes("auto") == ("away",))
        record = one.keeper.report(one.config)[0]
        assert record.takes == ("away",)
        assert "home is down for " in record.reason
        assert record.reason.endswith("www.gstatic.com answered with status 500")
        one.webs["home"].answer = OK
        await one.until(lambda: one.plane.takes("auto") == ("home",))

    asyncio.run(one.live(scenario))
    assert one.keeper.counters["group_switches"] == 2
    assert one.keeper.counters["probes_failed"] >= 1
    said = [record.message for record in caplog.records if "group" in record.message]
    assert said == [
        "a member of a group is down",
        "a group takes another member",
        "a member of a group is up again",
        "a group takes another member",
    ]


def test_nobody_is_asked_before_a_flow_uses_the_group(house: Callable[..., House]) -> None:
    one = house(auto=auto())

    async def scenario() -> None:
        await asyncio.sleep(0.2)
        assert one.webs["home"].asked == []
        one.plane.used["auto"] = 1
        await one.until(lambda: one.webs["home"].asked and one.webs["away"].asked)
        await one.until(lambda: ("home",) in one.plane.well and ("away",) in one.plane.well)

    asyncio.run(one.live(scenario))


def test_a_flow_that_fails_has_its_member_probed(house: Callable[..., House]) -> None:
    one = house(auto=auto(every=3600))

    async def scenario() -> None:
        one.plane.failures["home"] = 1
        await one.until(lambda: one.webs["home"].asked)
        assert one.webs["away"].asked == []

    asyncio.run(one.live(scenario))


def test_an_outbound_that_is_another_after_a_reload_is_looked_at_anew(
    house: Callable[..., House],
) -> None:
    one = house(auto=auto(every=3600, lazy=False))

    async def scenario() -> None:
        one.webs["home"].answer = one.webs["away"].answer = b"HTTP/1.1 500 No\r\n\r\n"
        await one.until(lambda: one.keeper.counters["probes_failed"] == 2)
        assert one.keeper.standings(one.config)["auto"] == Standing((), ("home", "away"))
        one.webs["home"].answer = OK
        outbounds = {**one.config.outbounds, "home": one.config.outbounds["away"]}
        home = outbounds["home"].model_copy(update={"port": 1081})
        one.config = one.config.model_copy(update={"outbounds": {**outbounds, "home": home}})
        await one.keeper.tell(one.plane, one.config)
        assert one.plane.told[-1]["auto"] == Standing(("home",), ("away",))
        await one.until(lambda: one.keeper.counters["probes"] == 1)

    asyncio.run(one.live(scenario))


def test_the_owners_choice_is_kept(house: Callable[..., House]) -> None:
    groups = {"exit": {"type": "select", "members": ["home", "away"]}, "auto": auto()}
    one = house(**groups)
    assert one.keeper.standings(one.config)["exit"].now == ("home",)

    async def choose() -> None:
        record = await one.keeper.choose(one.plane, one.config, "exit", "away")
        assert record.takes == ("away",)

    asyncio.run(choose())
    assert one.plane.takes("exit") == ("away",)
    again = house(**groups)
    assert again.keeper.standings(again.config)["exit"].now == ("away",)


@pytest.mark.parametrize(
    ("group", "member", "said", "cure"),
    [
        ("exot", "home", "there is no group exot", "did you mean exit?"),
        ("home", "away", "there is no group home", "groups: auto, exit"),
        ("exit", "hom", "hom is no member of exit", "did you mean home?"),
        ("auto", "home", "auto chooses by itself", "type select"),
    ],
)
def test_what_cannot_be_chosen(
    house: Callable[..., House], group: str, member: str, said: str, cure: str
) -> None:
    one = house(exit={"type": "select", "members": ["home", "away"]}, auto=auto())
    with pytest.raises(ChoiceError, match=said) as caught:
        asyncio.run(one.keeper.choose(one.plane, one.config, group, member))
    assert cure in caught.value.hint
    assert one.plane.told == []


def test_a_choice_that_cannot_be_kept_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    its = config(exit={"type": "select", "members": ["home", "away"]})
    keeper, plane = GroupKeeper(tmp_path / "state" / "groups.json"), Plane()
    with pytest.raises(GatewayError, match="the choice cannot be kept") as caught:
        asyncio.run(keeper.choose(plane, its, "exit", "away"))
    assert "state_dir" in caught.value.hint
    assert keeper.standings(its)["exit"].now == ("home",)


def test_where_choices_are(tmp_path: Path) -> None:
    path = choices_of(config(), tmp_path / "gateway.yaml")
    assert path == Path("/var/lib/gateway/groups.json")
    write_choices(tmp_path / "new" / "groups.json", {"exit": "away"})
    assert read_choices(tmp_path / "new" / "groups.json") == {"exit": "away"}
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["groups.json"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from([b"{}", b"[]", b'{"chosen": 1}', b'{"chosen": {"a": null}}', b"\xff"]),
    )
)
def test_a_file_of_choices_that_is_broken_chooses_nothing_harmful(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "groups.json"
    path.write_bytes(content)
    its = config(exit={"type": "select", "members": ["home", "away"]})
    assert GroupKeeper(path).standings(its)["exit"].now == ("home",)
