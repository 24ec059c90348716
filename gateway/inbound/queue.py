"""Flows decided by their first packet, before anything of them is terminated.

The kernel asks about packets of which it cannot tell by itself what the rules say. The
answer becomes the connection's mark, so it is asked once for a flow. Where the first packet
does not tell either, the flow goes to a listener, which sees more.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop
from typing import Final, NamedTuple
from typing import Protocol as Interface

from gateway.decision import Decision, Undecided
from gateway.flow import Endpoint, FlowFacts, Protocol
from gateway.kernel.arrival import Arrival
from gateway.kernel.nfqueue import PacketQueue
from gateway.kernel.reactor import Reactor
from gateway.marks import Mark
from gateway.policy.engine import Policy
from gateway.sniff.datagrams import Datagrams
from gateway.wire.packet import ICMP, ICMPV6, TCP, UDP, Packet, read_packet

#: Answers are remembered for so long (seconds), for the packets that came before the first one's
#: answer was in force; a lookup costs a fraction of a decision.
REMEMBER_S: Final = 2.0
#: And so many of them.
_REMEMBERED: Final = 1 << 15
_UDP_HEADER: Final = 8

_PROTOCOLS: Final = {
    TCP: Protocol.TCP,
    UDP: Protocol.UDP,
    ICMP: Protocol.ICMP,
    ICMPV6: Protocol.ICMP,
}
_MISSING: Final = Mark(0, 0)
_Flow = tuple[Packet, int, str]


class Judgement(NamedTuple):
    """What the classifier of a data plane decides by.

    ``queue`` is the number of its packet queue. ``answers``: for each outbound the mark that
    its packets go on with, None to drop them; ``divert`` and ``direct`` are two of these marks.
    ``carried``: the protocols that listeners take.
    """

    queue: int
    answers: Mapping[str, Mark | None]
    divert: Mark
    direct: Mark
    carried: tuple[Protocol, ...]


class Finder(Interface):
    """Who knows of a flow what its packet does not tell."""

    def of_packet(
        self, protocol: Protocol, source: Endpoint, destination: Endpoint, came: Arrival, mac: str
    ) -> FlowFacts:
        """The facts, with what rules ask for; ``mac`` is empty where there is none."""

    def now(self) -> int | None:
        """The time, where rules ask for it."""


class Classifier:
    """Answers for one packet queue. ``adopt`` changes what it decides by."""

    def __init__(
        self,
        reactor: Reactor,
        number: int,
        policy: Policy,
        judgement: Judgement,
        finder: Finder,
    ) -> None:
        """Raises ``CapabilityError`` where there is no such queue."""
        self.counters: Counter[str] = Counter()
        self._new: dict[_Flow, Mark | None] = {}
        self._old: dict[_Flow, Mark | None] = {}
        self._since = 0.0
        self.adopt(policy, judgement, finder)
        self._queue = PacketQueue(reactor, number, self)

    def adopt(self, policy: Policy, judgement: Judgement, finder: Finder) -> None:
        """Decide by this from now on."""
        self._policy = policy
        self._finder = finder
        self._judgement = judgement
        self._new, self._old = {}, {}

    def close(self) -> None:
        """Answer nothing more."""
        self._queue.close()

    def judge(self, data: bytes, interface_index: int, mac: str) -> Mark | None:
        """See ``gateway.kernel.nfqueue.Judge``."""
        read = read_packet(data)
        if read is None or read.protocol not in _PROTOCOLS:
            self.counters["queue_unreadable"] += 1
            return self._judgement.divert
        now = time.monotonic()
        if now - self._since > REMEMBER_S or len(self._new) >= _REMEMBERED:
            self._new, self._old, self._since = {}, self._new, now
        flow = (read, interface_index, mac)
        answer = self._new.get(flow, _MISSING)
        if answer is _MISSING:
            answer = self._old.get(flow, _MISSING)
        if answer is not _MISSING:
            self.counters["queue_again"] += 1
            return answer
        answer = self._decide(read, data, interface_index, mac)
        self._new[flow] = answer
        return answer

    def _decide(self, read: Packet, data: bytes, interface_index: int, mac: str) -> Mark | None:
        facts = self._finder.of_packet(
            _PROTOCOLS[read.protocol],
            Endpoint(_text(read.source), read.source_port),
            Endpoint(_text(read.destination), read.destination_port),
            Arrival(interface_index, read.dscp),
            mac,
        )
        answer = self._policy.decide(facts, self._finder.now())
        if isinstance(answer, Undecided):
            answer = self._by_first_bytes(facts, data[read.transport + _UDP_HEADER :])
        if isinstance(answer, Undecided):
            self.counters["queue_undecided"] += 1
            return self._judgement.divert
        return self._mark(answer, facts.protocol)

    def _by_first_bytes(self, facts: FlowFacts, datagram: bytes) -> Decision | Undecided:
        """A datagram may show at once what there is to see; a listener may wait for more."""
        if facts.protocol is Protocol.UDP:
            seen = Datagrams().feed(datagram)
            if seen.complete:
                facts = facts._replace(name=seen.name, sniffed=seen.protocol)
        if facts.protocol in self._judgement.carried:
            return self._policy.decide(facts, self._finder.now())
        return self._policy.settle(facts, self._finder.now())

    def _mark(self, decision: Decision, protocol: Protocol) -> Mark | None:
        judgement = self._judgement
        answer = judgement.answers[decision.outbound]
        if answer is None:
            self.counters["queue_dropped"] += 1
        elif answer == judgement.divert:
            if protocol in judgement.carried:
                self.counters["queue_diverted"] += 1
                return answer
            answer = judgement.direct  # routed on, since nobody here carries it
        if answer == judgement.direct:
            self.counters["queue_direct"] += 1
            if decision.mark is not None:
                return Mark(answer.value | decision.mark.value, answer.mask | decision.mark.mask)
        elif answer is not None:
            self.counters["queue_refused"] += 1
        return answer


@lru_cache(maxsize=8192)
def _text(address: bytes) -> str:
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)
