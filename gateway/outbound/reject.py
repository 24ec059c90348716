"""``reject``: no second leg at all.

What rules reject by address, port or interface is refused in the kernel, before
a handshake, with the answer the owner chose. A flow that gets as far as a
listener is connected already, so a reset is all that is left to answer.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Self

from gateway.errors import UpstreamFailure
from gateway.flow import Endpoint, FlowFacts
from gateway.kernel.datagrams import Batch
from gateway.outbound.base import EchoRefusal, Requester
from gateway.outbound.datagrams import LegOwner


@dataclass(frozen=True, slots=True)
class RejectOutbound:
    """Refuses every flow; it stands in, too, for an outbound that must not be used now.

    ``silent``: of what nobody is told who has no connection yet.
    """

    name: str
    failure: UpstreamFailure = UpstreamFailure.REJECTED
    detail: str = ""
    silent: bool = False
    by_name: ClassVar = False

    def open(self, facts: FlowFacts, requester: Requester) -> None:
        """Fail at once."""
        del facts
        requester.failed(self.failure, self.detail)

    @property
    def carries_udp(self) -> bool:
        """It is asked like the others, and refuses."""
        return True

    def carrier(self, client: Endpoint, tried: Collection[str] = ()) -> Self:
        """Itself."""
        del client, tried
        return self

    def associate(self, family: int, client: Endpoint, owner: LegOwner, batch: Batch) -> None:
        """Fail at once."""
        del family, client, batch
        owner.leg_failed(self.failure, self.detail)

    def ping(self, host: str) -> EchoRefusal:
        """Refuse it, or have nothing said of it."""
        del host
        if self.silent:
            return EchoRefusal.SILENT
        refused = self.failure is UpstreamFailure.REJECTED
        return EchoRefusal.REJECTED if refused else EchoRefusal.UNREACHABLE

    def close(self) -> None:
        """There is nothing that no flow uses."""


def refusal(
    name: str, failure: UpstreamFailure, detail: str, *, silent: bool = False, **_: object
) -> RejectOutbound:
    """Make one, leaving aside what other outbounds are made of.

    It is here because a worker that is sent a recipe loads the module that it is from.
    """
    return RejectOutbound(name, failure, detail, silent)
