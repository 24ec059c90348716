"""Log lines as people and as collectors read them, and what happens in a storm."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.logs import (
    FLOWS_WAIT_S,
    FlowLog,
    JsonFormatter,
    QuietHandler,
    Repeats,
    TextFormatter,
    configure,
    fields,
    flow_line,
)

from .conftest import CLOSED, LIVE


def record(
    event: str = "loop refused", level: int = logging.WARNING, at: float = 1000.0, **values: object
) -> logging.LogRecord:
    made = logging.LogRecord("gateway.x", level, "", 0, event, None, None)
    made.created = at
    made.__dict__.update(fields(**values))
    return made


def test_text_line() -> None:
    made = record(client="192.0.2.1:5", rule="rules[2] -> home", empty="", path='a"b')
    assert TextFormatter().format(made) == (
        "1970-01-01T00:16:40.000Z warning loop refused"
        ' client=192.0.2.1:5 rule="rules[2] -> home" empty="" path="a\\"b"'
    )


def test_json_line() -> None:
    made = record(client="192.0.2.1:5", count=3)
    assert json.loads(JsonFormatter().format(made)) == {
        "time": "1970-01-01T00:16:40.000Z",
        "level": "warning",
        "event": "loop refused",
        "client": "192.0.2.1:5",
        "count": 3,
    }


@given(event=st.text(max_size=30), value=st.text(max_size=30))
def test_one_event_is_one_line_whatever_a_peer_sends(event: str, value: str) -> None:
    made = record("%s", value=value)
    made.args = (event,)
    assert len(TextFormatter().format(made).splitlines()) == 1
    parsed = json.loads(JsonFormatter().format(made))
    assert (parsed["event"], parsed["value"]) == (event, value)


def test_a_traceback_is_kept() -> None:
    try:
        int("inner")
    except ValueError:
        made = logging.LogRecord("gateway", logging.ERROR, "", 0, "failed", None, sys.exc_info())
    assert "ValueError: invalid" in TextFormatter().format(made)
    assert "ValueError: invalid" in json.loads(JsonFormatter().format(made))["traceback"]


def test_flow_line_has_what_an_owner_asks_for() -> None:
    assert flow_line(CLOSED) == {
        "flow": 6,
        "protocol": "tcp",
        "client": "192.168.20.5:39999",
        "destination": "198.51.100.10:80",
        "rule": "rules[3] -> home",
        "outbound": "home",
        "up": 0,
        "down": 0,
        "seconds": 0.5,
        "reason": "upstream-refused",
        "detail": "connection refused",
    }
    assert flow_line(LIVE)["reason"] == ""
    assert "detail" not in flow_line(LIVE)


@pytest.mark.parametrize("form", ["text", "json"])
def test_flows_are_written_together_each_on_its_own_line(
    form: Literal["text", "json"],
    root_logger: logging.Logger,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure("info", form)
    waiting: list[tuple[float, Callable[[], None]]] = []
    flows = FlowLog(lambda delay, write: waiting.append((delay, write)))
    for _ in range(2):
        flows.add(CLOSED)
        flows.add(LIVE)
        assert capsys.readouterr().err == ""
        ((delay, write),) = waiting
        assert delay == FLOWS_WAIT_S
        waiting.clear()
        write()
        assert [" info flow flow=6 " in line or '"flow": 6' in line for line in lines(capsys)] == [
            True,
            False,
        ]
    flows.write()
    assert lines(capsys) == []


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_repeated_warnings_are_counted_instead_of_shown() -> None:
    repeats = Repeats(limit=5, window_s=10.0)
    shown = [repeats.admit(record(at=1000.0 + n / 1000)) for n in range(2000)]
    assert shown == [True] * 5 + [False] * 1995
    assert repeats.summaries(1010.0) == []
    (summary,) = repeats.summaries(1010.1)
    assert summary.getMessage() == "loop refused"
    assert summary.fields == {"hidden": 1995, "within_s": 10.0}  # type: ignore[attr-defined]
    assert repeats.admit(record(at=1010.2))


def test_other_events_and_lower_levels_are_not_held_back() -> None:
    repeats = Repeats(limit=1)
    assert repeats.admit(record("one"))
    assert not repeats.admit(record("one"))
    assert repeats.admit(record("two"))
    assert all(repeats.admit(record("flow closed", logging.INFO)) for _ in range(100))


def test_few_warnings_need_no_summary() -> None:
    repeats = Repeats(limit=5, window_s=10.0)
    for _ in range(5):
        repeats.admit(record())
    assert repeats.summaries(2000.0) == []


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = before
    root.setLevel(level)


def test_configure_replaces_itself(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    configure("info", "text")
    configure("warning", "json")
    logging.getLogger("gateway.test").info("quiet")
    logging.getLogger("gateway.test").warning("loud", extra=fields(port=1))
    assert sum(isinstance(one, QuietHandler) for one in root_logger.handlers) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["event"] for line in lines] == ["loud"]


def test_a_storm_is_short_on_standard_error(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does a change of the network, after which logging is set up again, begin it anew."""
    for number in range(1000):
        configure("info", "text")
        logging.getLogger("gateway.test").warning("loop refused", extra=fields(port=number))
    assert len(capsys.readouterr().err.splitlines()) == 5
