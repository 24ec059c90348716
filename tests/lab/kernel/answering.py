"""A classifier that answers its packet queue from a thread of its own."""

from __future__ import annotations

import selectors
import threading
from socket import SocketType

from policies import CONFIG

from gateway.facts import FactFinder
from gateway.flow import Protocol
from gateway.inbound.queue import Classifier, Judgement
from gateway.kernel.reactor import Watcher
from gateway.marks import Marks
from gateway.policy.engine import Needs, Policy
from gateway.policy.rule import CompiledRule

_MARKS = Marks()
_JUDGEMENT = Judgement(
    CONFIG.inbound.queue,
    {
        "direct": _MARKS.direct,
        "home": _MARKS.divert,
        "mixed": _MARKS.divert,
        "plain": _MARKS.direct,
        "reject": _MARKS.refuse,
        "icmp": _MARKS.refuse_icmp,
        "silent": None,
    },
    _MARKS.divert,
    _MARKS.direct,
    (Protocol.TCP,),
)


class _Finder(FactFinder):
    """At the first minute of the week, whenever that is asked."""

    def now(self) -> int:
        return 0


FINDER = _Finder(Needs(interface=True))
_NOTHING = Policy([CompiledRule(index=0, text="", outbound="silent")])


class _Reactor:
    """What a packet queue asks of its reactor."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.watcher: Watcher | None = None

    def watch(self, fd: int, watcher: Watcher) -> None:
        self.selector.register(fd, selectors.EVENT_READ)
        self.watcher = watcher

    def again(self, fd: int) -> None:
        """It is readable still: this selector is not edge-triggered."""

    def close(self, sock: SocketType) -> None:
        self.selector.unregister(sock)
        sock.close()


class Answering:
    """Takes the place of a data plane; ``decide_by`` is a reload."""

    def __init__(self) -> None:
        self._reactor = _Reactor()
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._serve)

    def open(self) -> None:
        """To be called in the namespace of the queue."""
        number = CONFIG.inbound.queue
        self.classifier = Classifier(self._reactor, number, _NOTHING, _JUDGEMENT, FINDER)
        self._thread.start()

    def decide_by(self, policy: Policy) -> None:
        with self._lock:
            self.classifier.adopt(policy, _JUDGEMENT, FINDER)

    def settled(self) -> None:
        """Return once none is being answered of those that have left the queue."""
        with self._lock:
            pass

    def close(self) -> None:
        self._end.set()
        self._thread.join()
        self.classifier.close()
        self._reactor.selector.close()

    def _serve(self) -> None:
        while not self._end.is_set():
            for key, _ in self._reactor.selector.select(0.1):
                with self._lock:
                    assert self._reactor.watcher is not None
                    self._reactor.watcher.on_ready(key.fd, 0)
