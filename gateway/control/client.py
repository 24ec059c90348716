"""A client of the control API for the command line, on the standard library alone.

It starts fast because it loads neither the server's libraries nor the configuration's.
"""

from __future__ import annotations

import json
import socket
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from gateway.errors import GatewayError

SOCKET_NAME = "control.sock"
TIMEOUT_S = 30.0


class NotRunningError(GatewayError):
    """No gateway answers on the control socket."""


class ControlClient:
    """Talks to the gateway whose run directory is ``run_dir``."""

    def __init__(self, run_dir: Path, timeout_s: float = TIMEOUT_S) -> None:
        self._path = run_dir / SOCKET_NAME
        self._timeout_s = timeout_s

    def get(self, target: str) -> dict[str, Any]:
        """The JSON object at ``target`` (``/health``). Raises as ``request`` does."""
        return self.request("GET", target)

    def request(self, method: str, target: str) -> dict[str, Any]:
        """One request.

        Raises ``NotRunningError`` where nobody listens, and ``GatewayError`` with the
        gateway's own message and hint where it refuses.
        """
        connection = _UnixConnection(self._path, self._timeout_s)
        try:
            connection.request(method, target)
            response = connection.getresponse()
            body = json.loads(response.read())
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise NotRunningError(
                f"no gateway is running (nothing answers on {self._path})",
                "start it with `gateway run`, or give its --run-dir",
            ) from error
        except PermissionError as error:
            raise GatewayError(
                f"not allowed to open {self._path}", "run this command as root"
            ) from error
        except TimeoutError as error:
            raise GatewayError(
                f"the gateway did not answer within {self._timeout_s:g} s", "look at its log"
            ) from error
        except (HTTPException, ValueError) as error:
            raise GatewayError(f"what answers on {self._path} is not a gateway: {error}") from error
        except OSError as error:
            raise GatewayError(f"cannot ask on {self._path}: {error}") from error
        finally:
            connection.close()
        if not isinstance(body, dict):
            raise GatewayError(f"what answers on {self._path} is not a gateway")
        if response.status >= 400:
            raise GatewayError(str(body.get("message")), str(body.get("hint", "")))
        return body


class _UnixConnection(HTTPConnection):
    """HTTP over a unix stream socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a host and port."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
