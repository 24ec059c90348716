"""The control API and its client, over a real unix socket."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.control.api import MAX_RECENT, ControlServer
from gateway.control.client import ControlClient, NotRunningError
from gateway.errors import ApplyError, ConfigError, GatewayError, LoopError, Problem

from .conftest import FakeRunning


def raw_request(run_dir: Path, request: bytes) -> tuple[int, bytes]:
    """Status and body of what the server answers to these bytes."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(60)
        client.connect(str(run_dir / "control.sock"))
        client.sendall(request)
        answer = b""
        while block := client.recv(65536):
            answer += block
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def get(run_dir: Path, target: str, method: str = "GET") -> tuple[int, dict[str, object]]:
    status, body = raw_request(
        run_dir, f"{method} {target} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    )
    return status, json.loads(body)


def test_health(served: FakeRunning, run_dir: Path) -> None:
    status, body = get(run_dir, "/health")
    assert status == 200
    assert body["state"] == "running"
    assert body["uptime_s"] == 3723.0
    assert body["outbounds"] == [
        {
            "name": "home",
            "type": "socks5",
            "ok": True,
            "strategy": "mark",
            "route": "203.0.113.5 via 203.0.113.1 dev eth0",
            "reason": "",
            "hint": "",
        }
    ]


def test_flows_are_shown_as_text_of_the_logs(served: FakeRunning, run_dir: Path) -> None:
    _, body = get(run_dir, "/flows?recent=5")
    flows = body["flows"]
    assert isinstance(flows, list)
    assert flows[0] == {
        "id": 7,
        "state": "relaying",
        "protocol": "tcp",
        "client": "192.168.20.5:40000",
        "destination": "[2001:db8::1]:443",
        "name": "www.video.example",
        "sniffed": "tls",
        "interface": "eth1",
        "rule": "rules[2] subnet=kids -> home",
        "outbound": "home",
        "member": "",
        "started": 1_700_000_000.0,
        "duration_s": 61.235,
        "bytes_up": 1500,
        "bytes_down": 2_500_000,
        "close_reason": None,
        "detail": "",
    }
    assert flows[1]["close_reason"] == "upstream-refused"
    assert served.asked_recent == [5]


def test_flows_without_recent_are_the_live_ones(served: FakeRunning, run_dir: Path) -> None:
    _, body = get(run_dir, "/flows")
    assert [flow["id"] for flow in body["flows"]] == [7]  # type: ignore[attr-defined]
    assert served.asked_recent == [0]


def test_recent_is_capped(served: FakeRunning, run_dir: Path) -> None:
    status, _ = get(run_dir, "/flows?recent=99999")
    assert status == 200
    assert served.asked_recent == [MAX_RECENT]


@pytest.mark.parametrize("recent", ["-1", "x", "", "1.5", "%D9%A3", "9" * 5000])
def test_bad_recent_is_refused_with_a_hint(served: FakeRunning, run_dir: Path, recent: str) -> None:
    status, body = get(run_dir, f"/flows?recent={recent}")
    assert status == 400
    assert "number" in str(body["message"])
    assert str(MAX_RECENT) in str(body["hint"])
    assert served.asked_recent == []


def test_a_question_without_meaning_is_the_askers_fault(served: FakeRunning, run_dir: Path) -> None:
    status, body = get(run_dir, "/explain?source=10.0.0.2&at=fri%2022:30")
    assert (status, body) == (400, {"message": "source=10.0.0.2 at=fri 22:30", "hint": "cure"})


def test_shadow(served: FakeRunning, run_dir: Path) -> None:
    status, body = get(run_dir, "/shadow?path=/new.yaml", "POST")
    assert (status, body["changes"], body["compared"]) == (200, ["/new.yaml"], 3)
    for bad in ("new.yaml", "", "/new%00.yaml"):
        assert get(run_dir, f"/shadow?path={bad}", "POST")[0] == 400
    assert served.reloads == 0


def test_counters_and_plan(served: FakeRunning, run_dir: Path) -> None:
    assert get(run_dir, "/counters")[1] == {"counters": {"accepted": 12, "refused.loop": 0}}
    assert get(run_dir, "/plan")[1] == {
        "text": "table inet gateway {\n}\n",
        "placements": [
            {
                "index": 0,
                "rule": "rules[0] -> direct",
                "place": "kernel",
                "reason": "direct is routed",
            }
        ],
        "difference": "+ rule pre\n",
        "without_udp": [],
    }


def test_reload_says_what_changed(served: FakeRunning, run_dir: Path) -> None:
    assert get(run_dir, "/reload", "POST") == (200, {"changes": ["rules[1] is new"]})
    assert served.reloads == 1


def test_reload_of_a_bad_file_lists_each_problem(served: FakeRunning, run_dir: Path) -> None:
    served.error = ConfigError(
        (
            Problem("g.yaml", 3, 1, "lna", "unknown key", "lna", "did you mean `lan`?"),
            Problem("g.yaml", 9, 7, "rules[0].to", "no outbound of this name", "hoem"),
        )
    )
    status, body = get(run_dir, "/reload", "POST")
    assert status == 422
    assert [(p["line"], p["path"], p["cure"]) for p in body["problems"]] == [  # type: ignore[attr-defined]
        (3, "lna", "did you mean `lan`?"),
        (9, "rules[0].to", ""),
    ]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LoopError("home would loop", "use route: mark"), 422),
        (ApplyError("nft refused", "see the log"), 500),
    ],
)
def test_errors_keep_their_hint(
    served: FakeRunning, run_dir: Path, error: GatewayError, status: int
) -> None:
    served.error = error
    answer = get(run_dir, "/reload", "POST")
    assert answer == (status, {"message": str(error), "hint": error.hint})


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [("GET", "/nothing", 404), ("GET", "/reload", 405), ("DELETE", "/health", 405)],
)
def test_unknown_paths_and_methods_are_json(
    served: FakeRunning, run_dir: Path, method: str, target: str, status: int
) -> None:
    found, body = get(run_dir, target, method)
    assert found == status
    assert "/health" in str(body["hint"])
    assert target in str(body["message"])


def test_a_bug_is_logged_and_not_shown(
    served: FakeRunning, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served.error = ZeroDivisionError("secret inside")
    status, body = get(run_dir, "/counters")
    assert status == 500
    assert "secret" not in json.dumps(body)
    assert "secret inside" in caplog.text


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(target=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40))
def test_any_path_is_answered_with_json(served: FakeRunning, run_dir: Path, target: str) -> None:
    status, body = get(run_dir, f"/x{target}")
    assert status in {400, 404}
    assert body["message"]


def test_only_the_owner_may_connect(served: FakeRunning, run_dir: Path) -> None:
    assert stat.S_IMODE((run_dir / "control.sock").stat().st_mode) == 0o600


def test_a_dead_process_socket_is_replaced(
    serve: Callable[[FakeRunning], ControlServer], running: FakeRunning, run_dir: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(run_dir / "control.sock"))
    serve(running)
    assert get(run_dir, "/health")[0] == 200


def test_a_living_gateway_is_not_displaced(
    served: FakeRunning, serve: Callable[[FakeRunning], ControlServer], run_dir: Path
) -> None:
    with pytest.raises(GatewayError, match="another gateway"):
        serve(FakeRunning())
    assert get(run_dir, "/health")[0] == 200


def test_a_missing_directory_is_a_plain_error(
    serve: Callable[[FakeRunning], ControlServer], run_dir: Path
) -> None:
    run_dir.rmdir()
    with pytest.raises(GatewayError, match="cannot listen"):
        serve(FakeRunning())


def test_a_path_that_no_socket_can_have_is_a_plain_error(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 120)
    too_long.mkdir()
    with pytest.raises(GatewayError, match=r"cannot listen .*too long"):
        asyncio.run(ControlServer(FakeRunning(), too_long).start())
    with pytest.raises(GatewayError, match=r"cannot ask .*too long"):
        ControlClient(too_long).get("/health")


def test_client_reads_and_reloads(served: FakeRunning, run_dir: Path) -> None:
    client = ControlClient(run_dir)
    assert client.get("/health")["pid"] == 4242
    assert client.request("POST", "/reload") == {"changes": ["rules[1] is new"]}


def test_client_without_a_gateway(run_dir: Path) -> None:
    with pytest.raises(NotRunningError) as caught:
        ControlClient(run_dir).get("/health")
    assert "gateway run" in caught.value.hint


def test_client_raises_the_servers_error(served: FakeRunning, run_dir: Path) -> None:
    served.error = LoopError("home would loop", "use route: mark")
    with pytest.raises(GatewayError, match="home would loop") as caught:
        ControlClient(run_dir).request("POST", "/reload")
    assert caught.value.hint == "use route: mark"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.0 200 OK\r\n\r\nnot json",
        b"HTTP/1.0 200 OK\r\n\r\n[]",
        b"HTTP/1.0 200 OK\r\n\r\n\xff",
    ],
)
def test_client_meets_something_that_is_no_gateway(run_dir: Path, answer: bytes) -> None:
    def answer_once() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(run_dir / "control.sock"))
        listener.listen()
        thread = threading.Thread(target=answer_once)
        thread.start()
        with pytest.raises(GatewayError, match="not a gateway"):
            ControlClient(run_dir).get("/health")
        thread.join()


def test_client_does_not_wait_for_ever(run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as mute:
        mute.bind(str(run_dir / "control.sock"))
        mute.listen()
        with pytest.raises(GatewayError, match="did not answer"):
            ControlClient(run_dir, timeout_s=0.05).get("/health")
