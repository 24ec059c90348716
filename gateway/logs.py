"""Structured logging on standard error: one line is one event with named values.

The message of a record is the event, a constant text; what varies goes into
``extra=fields(client=..., port=...)``. So lines can be searched, and repeats counted.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from gateway.control.running import FlowRecord

log = logging.getLogger(__name__)

REPEAT_LIMIT = 5
REPEAT_WINDOW_S = 10.0
#: How long the line of an ended flow may wait for others (seconds).
FLOWS_WAIT_S = 0.05
#: Lines in one write(2): up to 4 KiB they are not mixed with those of other processes (pipe(7)).
FLOWS_AT_ONCE = 16

#: What needs no quotes: printable ASCII but for blanks, quotes and equals signs.
_PLAIN = re.compile(r"[!#-<>-~]+")


def configure(level: str, form: Literal["text", "json"]) -> None:
    """Send every record of this process at ``level`` or above to standard error.

    May be called again, after a reload and after each change of the network: repeats are counted
    on. ``level`` and ``form`` are the configuration's ``log.level`` and ``log.format``.
    """
    # In no line of ours, and dearer to look up than a line is to write (the Logging HOWTO).
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    root = logging.getLogger()
    handler = next((one for one in root.handlers if isinstance(one, QuietHandler)), None)
    if handler is None:
        handler = QuietHandler()
        root.addHandler(handler)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root.setLevel(level.upper())


def fields(**values: object) -> dict[str, object]:
    """Values of an event, for the ``extra`` of a logging call."""
    return {"fields": values}


def flow_line(flow: FlowRecord) -> dict[str, object]:
    """The values of the one line that each ended flow gets."""
    return {
        "flow": flow.id,
        "protocol": str(flow.protocol),
        "client": str(flow.client),
        "destination": str(flow.destination),
        **({"name": flow.name} if flow.name else {}),
        **({"sniffed": flow.sniffed} if flow.sniffed else {}),
        "rule": flow.rule,
        "outbound": flow.way,
        "up": flow.bytes_up,
        "down": flow.bytes_down,
        "seconds": round(flow.duration_s, 3),
        "reason": "" if flow.close_reason is None else str(flow.close_reason),
        **({"detail": flow.detail} if flow.detail else {}),
    }


class FlowLog:
    """The lines of ended flows, written many at a time.

    Each by itself would take a third of the CPU time of a short flow.
    """

    def __init__(self, later: Callable[[float, Callable[[], None]], object]) -> None:
        """``later`` is the event loop's ``call_later``."""
        self._later = later
        self._ended: dict[int, list[FlowRecord]] = {logging.INFO: [], logging.WARNING: []}

    def add(self, flow: FlowRecord, *, asked_for: bool = False) -> None:
        """Write the line of ``flow`` before long; one that a rule asks for is a warning."""
        if not any(self._ended.values()):
            self._later(FLOWS_WAIT_S, self.write)
        self._ended[logging.WARNING if asked_for else logging.INFO].append(flow)

    def write(self) -> None:
        """Write what waits."""
        for level, ended in self._ended.items():
            for at in range(0, len(ended), FLOWS_AT_ONCE):
                batch = [flow_line(flow) for flow in ended[at : at + FLOWS_AT_ONCE]]
                log.log(level, "flow", extra={"batch": batch})
            ended.clear()


def _values(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = getattr(record, "fields", {})
    return found


def _lines(record: logging.LogRecord) -> list[dict[str, object]]:
    """The values of each line: a record is one, unless it is a batch."""
    batch: list[dict[str, object]] | None = getattr(record, "batch", None)
    return [_values(record)] if batch is None else batch


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class TextFormatter(logging.Formatter):
    """``time level event key=value ...``, and a traceback below where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """One event as text."""
        head = f"{_time(record)} {record.levelname.lower()} {_bare(record.getMessage())}"
        lines = [
            " ".join([head, *(f"{key}={_quoted(str(value))}" for key, value in values.items())])
            for values in _lines(record)
        ]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``event``, and the event's values."""

    def format(self, record: logging.LogRecord) -> str:
        """One event as JSON."""
        head = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        tail = {"traceback": self.formatException(record.exc_info)} if record.exc_info else {}
        return "\n".join(
            json.dumps({**head, **values, **tail}, default=str) for values in _lines(record)
        )


def _bare(text: str) -> str:
    """``text`` on one line: what a peer sent must not be able to forge a line of its own."""
    return text if text.isprintable() else json.dumps(text)


def _quoted(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


@dataclass(slots=True)
class _Window:
    """Repeats of one event since ``start`` (Unix time in seconds)."""

    start: float
    seen: int
    last: logging.LogRecord


class Repeats:
    """Decides which warnings are shown: of each event, five in ten seconds.

    A routing loop makes thousands of equal warnings in a second; they must not fill the disk.
    """

    def __init__(self, limit: int = REPEAT_LIMIT, window_s: float = REPEAT_WINDOW_S) -> None:
        self._limit = limit
        self._window_s = window_s
        self._windows: dict[tuple[str, str], _Window] = {}

    def admit(self, record: logging.LogRecord) -> bool:
        """Whether to show ``record``."""
        if record.levelno < logging.WARNING:
            return True
        window = self._windows.setdefault(
            (record.name, str(record.msg)), _Window(record.created, 0, record)
        )
        window.seen += 1
        window.last = record
        return window.seen <= self._limit

    def summaries(self, now: float) -> list[logging.LogRecord]:
        """Close windows that ended before ``now`` (Unix time): one record for what each hid."""
        ended = [
            key for key, window in self._windows.items() if now - window.start > self._window_s
        ]
        closed = [self._windows.pop(key) for key in ended]
        return [self._summary(window) for window in closed if window.seen > self._limit]

    def _summary(self, window: _Window) -> logging.LogRecord:
        hidden = window.seen - self._limit
        summary = logging.makeLogRecord(window.last.__dict__)
        summary.exc_info = None
        summary.__dict__.update(
            fields(**_values(window.last), hidden=hidden, within_s=self._window_s)
        )
        return summary


class QuietHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to standard error, and counts repeated warnings instead of writing them all."""

    def __init__(self) -> None:
        super().__init__()
        self._repeats = Repeats()

    def emit(self, record: logging.LogRecord) -> None:
        """Write ``record`` unless it repeats too often; first what earlier windows hid."""
        for summary in self._repeats.summaries(record.created):
            super().emit(summary)
        if self._repeats.admit(record):
            super().emit(record)
