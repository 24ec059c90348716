"""A client's socket as the world sees it through one outbound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from gateway.decision import Decision
from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.udp_sockets import ErrorReport
from gateway.outbound.base import Outbound
from gateway.outbound.datagrams import Kept, Leg
from gateway.udp.flow import UdpFlow


class MappingKey(NamedTuple):
    """``far`` only where the mapping is for one far end. ``outbound`` is the carrier's ``id``."""

    client: Endpoint
    outbound: int
    family: int
    far: Endpoint | None


class MappingOwner(Protocol):
    """Who keeps the mappings."""

    def answered_by_stranger(self, mapping: Mapping, remote: Endpoint) -> UdpFlow | None:
        """A far end speaks that the client has not talked to through the mapping."""

    def mapping_failed(
        self, mapping: Mapping, failure: UpstreamFailure, detail: str, kept: Sequence[Kept]
    ) -> None:
        """The mapping has lost its leg, which has ``kept`` what was to be sent."""

    def pass_on(self, mapping: Mapping, report: ErrorReport) -> None:
        """The network has said something of what was sent."""

    def dropped(self, why: str) -> None:
        """A datagram was left out."""


class Mapping:
    """One leg, whoever the client talks to through it."""

    def __init__(
        self,
        owner: MappingOwner,
        key: MappingKey,
        carrier: Outbound,
        facts: FlowFacts,
        decision: Decision,
        target: Endpoint | None = None,
    ) -> None:
        """``facts`` and ``decision`` are those of the flow that it was made for.

        ``target``: what its one far end is asked for by, if by name.
        """
        self._owner = owner
        self.key = key
        # A reload may have replaced it: as long as it is here, no other has its ``id``.
        self._carrier = carrier
        self.facts = facts
        self.decision = decision
        self.target = target
        #: Of a group, if it is by one.
        self.member = ""
        #: Names of the carriers by which its flows have failed in a row, its own included.
        self.tried: frozenset[str] = frozenset()
        self.leg: Leg | None = None
        self.flows: dict[Endpoint, UdpFlow] = {}

    def close(self) -> None:
        """Give the leg up."""
        if self.leg is not None:
            self.leg.close()
            self.leg = None

    def stranger(self, remote: Endpoint) -> UdpFlow | None:
        """The route of a far end that the leg does not know."""
        if self.target is not None and remote.port == self.target.port:
            # The address that the server has found for the name.
            return next(iter(self.flows.values()), None)
        return self.flows.get(remote) or self._owner.answered_by_stranger(self, remote)

    def leg_failed(self, failure: UpstreamFailure, detail: str, kept: Sequence[Kept] = ()) -> None:
        """Have its flows go on otherwise, or end."""
        self.leg = None
        self._owner.mapping_failed(self, failure, detail, kept)

    def leg_error(self, report: ErrorReport) -> None:
        """Pass on what the network says."""
        self._owner.pass_on(self, report)

    def leg_dropped(self, why: str) -> None:
        """Have it counted."""
        self._owner.dropped(why)
