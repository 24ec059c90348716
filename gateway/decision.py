"""The policy's answer for one flow."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from gateway.marks import Mark

#: Outbounds that exist without being written down.
DIRECT: Final = "direct"
REJECT: Final = "reject"
REJECT_ICMP: Final = "reject-icmp"
REJECT_DROP: Final = "reject-drop"


class Decision(NamedTuple):
    """``outbound`` by name, and the rule that fired.

    ``rule_index`` counts from 0 in the order of the rule's list; ``rule`` is the rule as a
    person wrote it, for logs (``rules[2] subnet=kids -> home``). ``mark`` goes on a direct
    flow's packets; ``log``: the rule asks for a line of its own; ``sniff`` False: the flow's
    first bytes must not be read, whatever for.
    """

    outbound: str
    rule_index: int
    rule: str
    mark: Mark | None = None
    log: bool = False
    sniff: bool = True

    @property
    def way(self) -> str:
        """The outbound, with the mark that its packets get; names what opens the legs."""
        return self.outbound if self.mark is None else f"{self.outbound} {self.mark}"


class Undecided(NamedTuple):
    """The first rule that may match asks for a fact of which the flow has None.

    Learn it (or that there is none), and ask again with it.
    """

    need: Literal["name", "sniffed"]
    rule_index: int
    rule: str
