"""Secrets from the environment, files and systemd; what is said where one is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.config.secrets import Secrets
from gateway.errors import GatewayError

FILES = {
    Path("/etc/gateway/password"): "two\nlines\r\n",
    Path("/run/creds/home"): "s3cret\n",
    Path("/abs"): "x",
    Path("/etc/gateway/empty"): "\n",
}


def read(path: Path) -> str:
    if path not in FILES:
        raise GatewayError(f"{path} does not exist", "create it")
    return FILES[path]


def resolve(tag: str, argument: str, **environment: str) -> str:
    return Secrets(environment, Path("/etc/gateway"), read).resolve(tag, argument)


def test_where_secrets_come_from() -> None:
    assert resolve("!env", "A", A="from env") == "from env"
    assert resolve("!file", "password") == "two\nlines"
    assert resolve("!file", "/abs") == "x"
    assert resolve("!credential", "home", CREDENTIALS_DIRECTORY="/run/creds") == "s3cret"


@pytest.mark.parametrize(
    ("tag", "argument", "environment", "message", "hint"),
    [
        ("!env", "A", {}, "variable A is not set", "EnvironmentFile="),
        ("!env", "A", {"A": ""}, "variable A is not set", "EnvironmentFile="),
        ("!file", "none", {}, "/etc/gateway/none does not exist", "create it"),
        ("!file", "empty", {}, "/etc/gateway/empty is empty", "only line"),
        ("!credential", "home", {}, "no credentials", "LoadCredential=home"),
        ("!credential", "../x", {"CREDENTIALS_DIRECTORY": "/run/creds"}, "not a path", "!file"),
        ("!credential", "", {"CREDENTIALS_DIRECTORY": "/run/creds"}, "not a path", "!file"),
        ("!credential", "x", {"CREDENTIALS_DIRECTORY": "/run/creds"}, "does not exist", "create"),
    ],
)
def test_missing_secrets(
    tag: str, argument: str, environment: dict[str, str], message: str, hint: str
) -> None:
    with pytest.raises(GatewayError, match=message) as caught:
        resolve(tag, argument, **environment)
    assert hint in caught.value.hint
