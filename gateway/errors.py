"""The error tree. Every error says what failed, on what, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class GatewayError(Exception):
    """Base of every error that a user may see.

    ``hint`` is the cure, in one sentence; it is empty where none is known.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding about the configuration, with the place it was found.

    ``line`` and ``column`` count from 1. ``path`` is the dotted path of the key
    (``rules[2].to``); ``value`` is what stood there, secrets left out.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    value: str = ""
    cure: str = ""

    def __str__(self) -> str:
        shown = f" (found {self.value})" if self.value else ""
        cure = f"\n    cure: {self.cure}" if self.cure else ""
        return f"{self.file}:{self.line}:{self.column}: {self.path}: {self.message}{shown}{cure}"


class ConfigError(GatewayError):
    """The configuration is not legal; ``problems`` holds all findings, in file order."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class CapabilityError(GatewayError):
    """The machine cannot do what was asked: a module, tool or privilege is missing."""


class ApplyError(GatewayError):
    """A change to the kernel failed; what had been changed was reverted."""


class LoopError(GatewayError):
    """An outbound's packets would enter our own diversion again."""


class ChoiceError(GatewayError):
    """A group that does not exist, or is not chosen by hand, or a member that it does not have."""


class ProtocolError(GatewayError):
    """A peer sent bytes that its protocol does not allow."""


class UpstreamFailure(StrEnum):
    """Why an upstream could not be used, in the terms the LAN client would have seen."""

    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    DENIED = "denied"
    PROTOCOL = "protocol"
    RESET = "reset"
    RESOURCES = "resources"
    REJECTED = "rejected"
