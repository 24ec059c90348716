"""What is tried for the matrix of loop strategies, one cell each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from gateway.lab.capture import Outcome, Seen
from gateway.lab.topology import FamilyNumber

SOCKS_PORT: Final = 1080


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing tried. ``detail``: whom the server saw, or why there was no answer."""

    technique: str
    situation: str
    family: FamilyNumber
    expected: Outcome
    seen: Outcome
    detail: str = ""
    expected_peer: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is as it should be."""
        return self.seen is self.expected and self.expected_peer in ("", self.detail)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "ok": self.ok}


def cell(
    technique: str,
    situation: str,
    family: FamilyNumber,
    expected: Outcome,
    seen: Seen,
    peer: str,
) -> Cell:
    """A cell; ``peer`` is whom the server must see, if the connection is to arrive."""
    wanted = peer if expected is Outcome.DIRECT else ""
    return Cell(technique, situation, family, expected, seen.outcome, seen.detail, wanted)


def socks(server: str, **more: Any) -> dict[str, Any]:
    """An outbound for a SOCKS server of the matrix, one connection a flow."""
    return {"type": "socks5", "server": server, "port": SOCKS_PORT, "pool": "off", **more}
