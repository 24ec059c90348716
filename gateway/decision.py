"""The policy's answer for one flow."""

from __future__ import annotations

from typing import NamedTuple

#: Outbounds that exist without being written down.
DIRECT = "direct"
REJECT = "reject"


class Decision(NamedTuple):
    """``outbound`` by name, and the rule that fired.

    ``rule_index`` counts from 0 in the order of the file; ``rule`` is the rule as a
    person wrote it, for logs (``rules[2] subnet=kids -> home``).
    """

    outbound: str
    rule_index: int
    rule: str
