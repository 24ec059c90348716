"""The control API: HTTP with JSON on a unix socket that only its owner may open."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from http import HTTPStatus
from pathlib import Path

from aiohttp import web

from gateway.control import views
from gateway.control.client import SOCKET_NAME
from gateway.control.running import Running
from gateway.errors import ChoiceError, ConfigError, GatewayError, LoopError
from gateway.explain.question import QuestionError

MAX_RECENT = 10_000

_logger = logging.getLogger(__name__)

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ControlServer:
    """Serves a running gateway's state in ``run_dir``, from ``start`` to ``stop``."""

    def __init__(self, running: Running, run_dir: Path) -> None:
        self._path = run_dir / SOCKET_NAME
        self._runner = web.AppRunner(application(running), access_log=None)

    async def start(self) -> None:
        """Listen. Raises ``GatewayError`` where another gateway answers on the socket."""
        listener = _listen(self._path)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()

    async def stop(self) -> None:
        """Answer nobody any more and remove the socket."""
        await self._runner.cleanup()
        self._path.unlink(missing_ok=True)


def application(running: Running) -> web.Application:
    """The routes; each asks ``running`` and shows the answer."""

    async def health(_: web.Request) -> web.Response:
        return web.json_response(views.health_view(await running.health()))

    async def flows(request: web.Request) -> web.Response:
        recent = _count(request.query.get("recent", "0"))
        return web.json_response(views.flows_view(await running.flows(recent)))

    async def counters(_: web.Request) -> web.Response:
        return web.json_response(views.counters_view(await running.counters()))

    async def groups(_: web.Request) -> web.Response:
        return web.json_response(views.groups_view(await running.groups()))

    async def select(request: web.Request) -> web.Response:
        group, member = request.query.get("group", ""), request.query.get("member", "")
        return web.json_response(views.group_view(await running.select(group, member)))

    async def plan(_: web.Request) -> web.Response:
        return web.json_response(views.plan_view(await running.plan()))

    async def reload(_: web.Request) -> web.Response:
        return web.json_response(views.reload_view(await running.reload()))

    async def explain(request: web.Request) -> web.Response:
        return web.json_response(asdict(await running.explain(request.query)))

    async def shadow(request: web.Request) -> web.Response:
        path = Path(request.query.get("path", ""))
        if not path.is_absolute() or "\0" in str(path):
            raise _BadRequestError("`path` is not a file", "give the whole path of a file")
        return web.json_response(asdict(await running.shadow(path)))

    app = web.Application(middlewares=[_errors_as_json])
    app.router.add_get("/health", health)
    app.router.add_get("/flows", flows)
    app.router.add_get("/counters", counters)
    app.router.add_get("/groups", groups)
    app.router.add_get("/plan", plan)
    app.router.add_get("/explain", explain)
    app.router.add_post("/reload", reload)
    app.router.add_post("/select", select)
    app.router.add_post("/shadow", shadow)
    return app


class _BadRequestError(GatewayError):
    """The client asked for something that has no meaning."""


def _count(text: str) -> int:
    """A number of flows from a query string."""
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_RECENT)):
        return min(int(text), MAX_RECENT)
    raise _BadRequestError(
        "`recent` is not a number of flows", f"give a whole number from 0 to {MAX_RECENT}"
    )


def _status(error: GatewayError) -> HTTPStatus:
    if isinstance(error, _BadRequestError | ChoiceError | QuestionError):
        return HTTPStatus.BAD_REQUEST
    if isinstance(error, ConfigError | LoopError):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    return HTTPStatus.INTERNAL_SERVER_ERROR


@web.middleware
async def _errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every answer is JSON, the refusals of the HTTP library included."""
    try:
        return await handler(request)
    except GatewayError as error:
        return web.json_response(views.error_view(error), status=_status(error))
    except web.HTTPException as error:
        paths = "GET /health /flows /counters /groups /plan /explain, POST /reload /select /shadow"
        message = f"{request.method} {request.path}: {error.reason.lower()}"
        view = views.error_view(GatewayError(message, f"this API has {paths}"))
        return web.json_response(view, status=error.status)
    except Exception:
        # One bad answer must not look like a broken connection; the log has the cause.
        _logger.exception("control request failed: %s %s", request.method, request.path)
        view = views.error_view(GatewayError("internal error", "the gateway's log has the cause"))
        return web.json_response(view, status=HTTPStatus.INTERNAL_SERVER_ERROR)


def _listen(path: Path) -> socket.socket:
    """A listening socket at ``path``, mode 0600, in place of one that a dead process left."""
    try:
        if _answers(path):
            raise GatewayError(
                f"another gateway answers on {path}", "stop it first, or use another --run-dir"
            )
        path.unlink(missing_ok=True)
        return _bound(path)
    except OSError as error:
        # A path that is too long (unix(7): 107 bytes) has no errno.
        why = error.strerror or str(error)
        raise GatewayError(f"cannot listen on {path}: {why}", "use another --run-dir") from error


def _bound(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # By umask, because between bind and a later chmod anybody could connect.
    previous = os.umask(0o177)
    try:
        listener.bind(str(path))
    except OSError:
        listener.close()
        raise
    finally:
        os.umask(previous)
    listener.setblocking(False)
    return listener


def _answers(path: Path) -> bool:
    """Whether a living process listens on the socket at ``path``. Raises ``OSError``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
    return True
