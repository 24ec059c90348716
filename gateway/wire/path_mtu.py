"""What the paths to hosts take, as far as routers have told: path MTU discovery (RFC 8201).

For IPv6, where nobody but the sender may cut a packet.
"""

from __future__ import annotations

from typing import Final

#: What every link takes; who tells of less is not believed (RFC 8201 section 4).
LEAST: Final = 1280
#: It is tried after so long (seconds) whether more goes again (RFC 8201 section 4).
MAX_AGE_S: Final = 600.0
#: Hosts that are kept in mind; the oldest make room.
MOST: Final = 1024


class PathMtus:
    """Sizes of packets in bytes, by address (packed). ``most``: what paths take by themselves."""

    __slots__ = ("_told", "most")

    def __init__(self, most: int) -> None:
        self.most = most
        self._told: dict[bytes, tuple[int, float]] = {}  # and since when, the oldest first

    def of(self, host: bytes) -> int:
        """The largest packet that reaches a host whole."""
        told = self._told.get(host)
        return self.most if told is None else told[0]

    def tell(self, host: bytes, mtu: int, now: float) -> bool:
        """A router says that it takes no more; whether that is less than it was.

        ``now``: any steady clock, in seconds.
        """
        mtu = max(mtu, LEAST)
        if mtu >= self.of(host):
            return False
        self._told.pop(host, None)
        if len(self._told) >= MOST:
            del self._told[next(iter(self._told))]
        self._told[host] = mtu, now
        return True

    def expire(self, now: float) -> None:
        """Forget what was told long ago."""
        for host, (_, since) in list(self._told.items()):
            if now - since < MAX_AGE_S:
                return
            del self._told[host]
