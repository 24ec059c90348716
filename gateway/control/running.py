"""What the control API asks of a running gateway, and the values it answers with.

``gateway.app`` implements ``Running``; nothing here opens a socket or knows HTTP, so
that the command line can read these values without loading the server's libraries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from gateway.flow import CloseReason, Endpoint
from gateway.flow import Protocol as Transport
from gateway.plan.model import RulePlacement

if TYPE_CHECKING:
    from gateway.explain.answer import Explanation
    from gateway.explain.shadow import ShadowReport
    from gateway.groups.report import GroupRecord


class FlowState(StrEnum):
    """Where a flow is in its life. The values stand in the API: do not rename them."""

    SNIFFING = "sniffing"
    CONNECTING = "connecting"
    RELAYING = "relaying"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class FlowRecord:
    """One flow that went through the listener, live or closed.

    ``id`` is unique within one run of the gateway. ``rule`` is the rule that fired, as a
    person wrote it. ``interface`` is empty where no rule asks for it. ``started`` is Unix
    time in seconds; ``duration_s`` counts to now, or to the end of a closed flow.
    ``bytes_up`` left the client, ``bytes_down`` reached it. ``close_reason`` is None while
    the flow lives; ``detail`` says more where there is more to say (an upstream's answer).
    ``rule`` and ``outbound`` are empty until a flow is decided. ``name`` and ``sniffed`` are
    the destination's name and the protocol that the client's first bytes told, if any.
    ``member``: of the outbound, where that is a group, once it has connected the flow.
    """

    id: int
    client: Endpoint
    destination: Endpoint
    rule: str
    outbound: str
    interface: str
    started: float
    state: FlowState
    bytes_up: int
    bytes_down: int
    duration_s: float
    close_reason: CloseReason | None = None
    detail: str = ""
    name: str = ""
    sniffed: str = ""
    protocol: Transport = Transport.TCP
    member: str = ""

    @property
    def way(self) -> str:
        """The outbound; of a group, with the member that was taken: ``auto>home``."""
        return f"{self.outbound}>{self.member}" if self.member else self.outbound


@dataclass(frozen=True, slots=True)
class OutboundHealth:
    """What the loop guard last found about one outbound.

    ``strategy`` keeps its packets out of the diversion, ``route`` is the kernel's answer where
    they would go; ``reason`` and ``hint`` are empty while all is well.
    """

    name: str
    type: str
    ok: bool
    strategy: str = ""
    route: str = ""
    reason: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """The gateway in one look. ``started`` is Unix time in seconds; ``uptime_s`` seconds.

    ``without_udp``: the outbounds that carry none, as the file says or as has turned out.
    """

    state: Literal["starting", "running", "stopping"]
    version: str
    pid: int
    config: str
    started: float
    uptime_s: float
    mode: Literal["tproxy", "redirect", "tun"]
    backend: Literal["nftables", "iptables"]
    backend_reason: str
    flows: int
    outbounds: tuple[OutboundHealth, ...] = ()
    without_udp: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The kernel state that is wanted, as text, and how what is installed differs from it.

    ``difference`` is empty where nothing differs. ``without_udp`` as of ``Health``.
    """

    text: str
    placements: tuple[RulePlacement, ...]
    difference: str
    without_udp: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ReloadReport:
    """What a reload changed, one sentence each; empty where the file says the same as before."""

    changes: tuple[str, ...]


class Running(Protocol):
    """A running gateway, as the control API sees it. Called on the event loop only."""

    async def health(self) -> Health:
        """Its state now."""
        ...

    async def flows(self, recent: int) -> list[FlowRecord]:
        """Live flows, and after them at most ``recent`` closed ones, latest first."""
        ...

    async def groups(self) -> tuple[GroupRecord, ...]:
        """Every group, with its members."""
        ...

    async def select(self, group: str, member: str) -> GroupRecord:
        """Have a ``select`` group take a member, now and after a restart.

        Raises ``ChoiceError`` where there is no such choice.
        """
        ...

    async def counters(self) -> dict[str, int]:
        """Totals since the start, by name."""
        ...

    async def plan(self) -> PlanReport:
        """The plan in force. Awaited, because it reads back what the kernel has.

        Raises ``GatewayError`` where that cannot be read.
        """
        ...

    async def reload(self) -> ReloadReport:
        """Read the configuration again and put it in force without dropping a flow.

        Raises ``ConfigError`` or another ``GatewayError``; the old state is then still
        in force.
        """
        ...

    async def explain(self, words: Mapping[str, str]) -> Explanation:
        """What would become of a flow: words as ``explain.answer.question`` has them.

        Raises ``QuestionError``.
        """
        ...

    async def shadow(self, path: Path) -> ShadowReport:
        """Which live flows would go elsewhere under another file, which is not put in force.

        Raises ``ConfigError`` or another ``GatewayError`` for the file.
        """
        ...
