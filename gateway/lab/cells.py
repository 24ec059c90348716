"""What is tried for the matrix of loop strategies, one cell each."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from gateway.lab.lab import Lab
from gateway.lab.topology import FAMILIES, FamilyNumber
from gateway.lab.trials import Outcome, Seen

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
    expected_words: str = ""

    @property
    def ok(self) -> bool:
        """Whether it is as it should be."""
        as_said = self.expected_peer in ("", self.detail) and self.expected_words in self.detail
        return self.seen is self.expected and as_said

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
    words: str = "",
) -> Cell:
    """A cell; ``peer`` is whom the server must see, if the connection is to arrive.

    ``words``: what must be said, if it is not.
    """
    arrives = expected is Outcome.DIRECT
    wanted = (peer, "") if arrives else ("", words)
    return Cell(technique, situation, family, expected, seen.outcome, seen.detail, *wanted)


def serve_socks(lab: Lab, *targets: str) -> None:
    """SOCKS servers on hosts of the internet; each goes on from the address that it is asked by."""
    for target in targets:
        for family in FAMILIES:
            host = lab.topology.targets[target].of(family)
            command = ["microsocks", "-i", host, "-p", str(SOCKS_PORT), "-b", host]
            name = f"socks-{target}-{family}"
            lab.internet.start_listening(name, command, (host, SOCKS_PORT))


def socks(server: str, **more: Any) -> dict[str, Any]:
    """An outbound for a SOCKS server of the matrix, one connection a flow."""
    return {"type": "socks5", "server": server, "port": SOCKS_PORT, "pool": "off", **more}
