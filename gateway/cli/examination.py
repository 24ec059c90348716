"""What ``gateway doctor`` examines, and what a check says about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gateway.config.schema import Config
from gateway.errors import GatewayError
from gateway.kernel.guard import Finding
from gateway.kernel.readings import Readings
from gateway.marks import DEFAULT_BASE, DEFAULT_TCP_PORT, Marks
from gateway.plan.backend import transparent
from gateway.plan.host import HostFacts
from gateway.plan.lookups import Lookup


class Status(StrEnum):
    """How bad it is: ``warn`` may hurt, ``fail`` will. The values stand in the JSON."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, what was seen, and the command or change that cures it."""

    name: str
    status: Status
    evidence: str
    cure: str = ""


def ok(name: str, evidence: str) -> Check:
    """Nothing to do."""
    return Check(name, Status.OK, evidence)


def warn(name: str, evidence: str, cure: str) -> Check:
    """It may hurt."""
    return Check(name, Status.WARN, evidence, cure)


def fail(name: str, evidence: str, cure: str) -> Check:
    """It will hurt."""
    return Check(name, Status.FAIL, evidence, cure)


@dataclass(frozen=True, slots=True)
class Examined:
    """Everything that was read, before anything is judged.

    ``config`` is None where the file does not load; ``config_error`` then says why.
    ``paths`` are the loop guard's findings, ``path_error`` why there are none; ``lookups``:
    names that outbounds look up by themselves.
    ``gateway_process`` is the process of the running gateway, if one runs;
    ``leftovers`` is kernel state of ours, as text; None where it could not be read.
    """

    facts: HostFacts
    readings: Readings
    config: Config | None = None
    config_error: GatewayError | None = None
    paths: tuple[Finding, ...] = ()
    path_error: GatewayError | None = None
    lookups: tuple[Lookup, ...] = ()
    gateway_process: int | None = None
    leftovers: tuple[str, ...] | None = ()

    @property
    def lan(self) -> tuple[str, ...]:
        """The LAN's interfaces, where they are known."""
        return self.config.lan.interfaces if self.config else ()

    @property
    def nfqueue(self) -> bool:
        """Whether packet queues are asked for."""
        return self.config is not None and self.config.inbound.classify == "nfqueue"

    @property
    def transparent(self) -> bool:
        """Whether packets are handed to transparent sockets, as they are by default."""
        return self.config is None or transparent(self.config)

    @property
    def marks(self) -> Marks:
        """Our marks, configured or default."""
        return Marks(self.config.marks.base if self.config else DEFAULT_BASE)

    @property
    def port(self) -> int:
        """The listener's port, configured or default."""
        return self.config.inbound.port if self.config else DEFAULT_TCP_PORT

    def sysctl(self, key: str) -> str | None:
        """A kernel setting by its dotted name."""
        return self.facts.sysctls.get(key)

    def interface_sysctl(self, family: str, interface: str, key: str) -> str | None:
        """A kernel setting of one interface; a dot in its name is written ``/`` (sysctl(8))."""
        return self.sysctl(f"net.{family}.conf.{interface.replace('.', '/')}.{key}")
