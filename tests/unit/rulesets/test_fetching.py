"""Fetching a list: conditions, bounds, redirects, and servers that do not behave."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.errors import GatewayError
from gateway.exchange import Connect
from gateway.flow import Endpoint
from gateway.lab import certificate
from gateway.rulesets.fetch import Copy, Order, fetch

Handler = Callable[[str, dict[str, str]], bytes]
BODY = b"a.example\n"


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    head = "".join(f"{header}\r\n" for header in headers)
    return f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body


def good(_path: str, headers: dict[str, str]) -> bytes:
    if headers.get("if-none-match") == '"one"':
        return answer("304 Not Modified", 'ETag: "one"')
    return answer("200 OK", 'ETag: "one"', f"Content-Length: {len(BODY)}", body=BODY)


async def with_server(
    handler: Handler, work: Callable[[Connect], Awaitable[None]], tls: ssl.SSLContext | None
) -> list[str]:
    """Run ``work`` with a way to a server on loopback, whatever it asks for; the paths asked."""
    paths: list[str] = []

    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        serving.add(task)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        except asyncio.IncompleteReadError:
            writer.close()
            return
        paths.append(head[0].split()[1])
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        said = handler(paths[-1], headers)
        if said:
            writer.write(said)
        else:
            await reader.read()  # silence, until the client gives up
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", ssl=tls)
    port = server.sockets[0].getsockname()[1]

    async def connect(target: Endpoint) -> socket.socket:
        if target.host == "refused.example":
            raise GatewayError("refused")
        return socket.create_connection(("127.0.0.1", port), 20)

    async with server:
        try:
            await work(connect)
        finally:
            for _turn in range(10):
                await asyncio.sleep(0)  # whoever was accepted last is in no task yet
            await asyncio.gather(*serving)
    return paths


def run(
    directory: Path,
    handler: Handler,
    *,
    url: str = "http://lists.example/a.txt?b=c",
    max_bytes: int = 1000,
    timeout_s: float = 20.0,
    verify: Callable[[Path], None] = lambda _path: None,
    tls: ssl.SSLContext | None = None,
) -> tuple[bool, list[str]]:
    order = Order(url, directory / "deep" / "copy", max_bytes, timeout_s)
    changed: list[bool] = []

    async def work(connect: Connect) -> None:
        changed.append(await fetch(order, connect, verify, lambda _got, _whole: None))

    paths = asyncio.run(with_server(handler, work, tls))
    return changed[0], paths


def test_a_copy_is_made_and_then_only_asked_after(tmp_path: Path) -> None:
    copy = tmp_path / "deep" / "copy"
    assert run(tmp_path, good) == (True, ["/a.txt?b=c"])
    assert copy.read_bytes() == BODY
    first = Copy.beside(copy)
    assert first.etag == '"one"'
    assert run(tmp_path, good)[0] is False
    assert copy.read_bytes() == BODY
    assert Copy.beside(copy).checked >= first.checked
    assert Copy.beside(copy).fetched == first.fetched
    copy.unlink()  # notes about a copy that is gone count for nothing
    assert run(tmp_path, good)[0] is True
    assert sorted(path.name for path in copy.parent.iterdir()) == ["copy", "copy.json"]


@pytest.mark.parametrize("notes", ["", "[]", "{}", '{"etag": 1}', "\0"])
def test_notes_that_are_bad_count_for_nothing(tmp_path: Path, notes: str) -> None:
    copy = tmp_path / "deep" / "copy"
    run(tmp_path, good)
    copy.with_name("copy.json").write_text(notes)
    assert Copy.beside(copy) == Copy()
    assert run(tmp_path, good)[0] is True


def test_redirects_are_followed(tmp_path: Path) -> None:
    def moved(path: str, headers: dict[str, str]) -> bytes:
        if path.startswith("/a.txt"):
            return answer("302 Found", "Location: /new")
        if path == "/new":
            return answer("308 Permanent", "Location: http://other.example/newest")
        assert headers["host"] == "other.example"
        return good(path, headers)

    assert run(tmp_path, moved) == (True, ["/a.txt?b=c", "/new", "/newest"])


CHUNKED = b"5\r\na.exa\r\n5\r\nmple\n\r\n0\r\n\r\n"


def test_chunks_and_answers_that_end_with_the_connection(tmp_path: Path) -> None:
    chunked = answer("200 OK", "Transfer-Encoding: chunked", body=CHUNKED)
    assert run(tmp_path, lambda _path, _headers: chunked)[0]
    assert (tmp_path / "deep" / "copy").read_bytes() == BODY
    assert run(tmp_path, lambda _path, _headers: answer("200 OK", body=BODY))[0]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (answer("404 Not Found"), "answered with status 404"),
        (answer("500 Oops", "Location: /a"), "answered with status 500"),
        (answer("302 Found", "Location: /a.txt"), "more than 5 times"),
        (answer("302 Found", "Location: ftp://a/b"), "led to ftp, not to http"),
        (answer("302 Found", "Location: http://a:99999/"), "failed"),
        (answer("302 Found", "Location: http://refused.example/"), "refused"),
        (answer("302 Found", "Location: http://a/\u00e4".encode().decode("latin-1")), "failed"),
        (answer("200 OK", "Content-Length: 5000", body=b"x"), "longer than 0.001 MB"),
        (answer("200 OK", body=b"x" * 1001), "longer than 0.001 MB"),
        (answer("200 OK", "Content-Length: 20", body=b"x"), "cut short: 1 of 20"),
        (answer("200 OK", "Transfer-Encoding: chunked", body=b"zz\r\n"), "failed"),
        (answer("200 OK", "Content-Encoding: gzip", body=b"x"), "encoded (gzip)"),
        (b"SSH-2.0-x\r\n", "failed"),
        (b"", "not there within"),
    ],
)
def test_what_goes_wrong_is_said_and_changes_nothing(
    tmp_path: Path, said: bytes, message: str
) -> None:
    run(tmp_path, good)
    notes = Copy.beside(tmp_path / "deep" / "copy")
    with pytest.raises(GatewayError) as caught:
        run(tmp_path, lambda _path, _headers: said, timeout_s=20.0 if said else 0.5)
    assert message in str(caught.value)
    assert (tmp_path / "deep" / "copy").read_bytes() == BODY
    assert Copy.beside(tmp_path / "deep" / "copy") == notes
    assert len(list((tmp_path / "deep").iterdir())) == 2


def test_what_does_not_verify_is_not_kept(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == BODY
        raise GatewayError("nothing in it")

    with pytest.raises(GatewayError, match="nothing in it"):
        run(tmp_path, good, verify=refuse)
    assert list((tmp_path / "deep").iterdir()) == []


@pytest.mark.parametrize(
    ("host", "trusted", "message"),
    [
        ("lists.example", True, None),
        ("lists.example", False, "self-signed certificate"),
        ("other.example", True, "certificate is not valid for 'other.example'"),
    ],
)
def test_https_needs_a_certificate_that_this_machine_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, trusted: bool, message: str | None
) -> None:
    made = certificate.make(tmp_path, ["lists.example"])
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(made.chain))
    url = f"https://{host}/a.txt"
    if message is None:
        assert run(tmp_path, good, url=url, tls=made.context())[0]
    else:
        with pytest.raises(GatewayError, match=message):
            run(tmp_path, good, url=url, tls=made.context())


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text("no directory")
    with pytest.raises(GatewayError, match="cannot keep it"):
        run(tmp_path, good)
