"""Secrets that the configuration names but does not hold."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.errors import GatewayError


@dataclass(frozen=True, slots=True)
class Secrets:
    """Resolves ``!env NAME``, ``!file PATH`` and ``!credential NAME``.

    ``read`` gives a file's text and raises ``GatewayError``; relative paths are taken
    from ``directory``, where the configuration file lies.
    """

    environment: Mapping[str, str]
    directory: Path
    read: Callable[[Path], str]

    def resolve(self, tag: str, argument: str) -> str:
        """The secret. Raises ``GatewayError``, whose text never has the secret in it."""
        if tag == "!env":
            return self._variable(argument)
        if tag == "!credential":
            return self._credential(argument)
        return self._content(self.directory / argument)

    def _variable(self, name: str) -> str:
        value = self.environment.get(name, "")
        if not value:
            raise GatewayError(
                f"the environment variable {name} is not set",
                f"set it before the start, or use EnvironmentFile= in the systemd unit: {name}=…",
            )
        return value

    def _credential(self, name: str) -> str:
        """systemd.exec(5), LoadCredential=: one file per credential, by its name."""
        directory = self.environment.get("CREDENTIALS_DIRECTORY", "")
        cure = f"write LoadCredential={name}:/path/to/file into the systemd unit"
        if not directory:
            raise GatewayError("systemd gave this process no credentials", cure)
        if not name or "/" in name:
            raise GatewayError("a credential is a name, not a path", "use !file for a path")
        return self._content(Path(directory) / name)

    def _content(self, path: Path) -> str:
        # Editors end a file with a newline, which is never part of the secret.
        text = self.read(path).rstrip("\r\n")
        if not text:
            raise GatewayError(f"{path} is empty", "write the secret into it, as its only line")
        return text
