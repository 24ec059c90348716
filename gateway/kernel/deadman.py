"""Keeps the dead-man sets alive: while their elements are there, the kernel diverts.

Called each second by the running gateway; when nobody calls, the kernel lets the elements
expire and routes on by itself (``on_failure: open``). Costs one transaction (nftables,
about a millisecond) or one short process (ipset).
"""

from __future__ import annotations

from gateway.kernel import ipset, nftables
from gateway.plan.model import Backend, Plan


def refresh(plan: Plan) -> None:
    """Restart the time-outs of the plan's dead-man sets; nothing to do where it has none.

    Blocks for some milliseconds: call it from a thread. Raises ``ApplyError`` where the
    sets are gone.
    """
    sets = [wanted for wanted in plan.sets if wanted.timeout_s is not None]
    if not sets:
        return
    if plan.backend is Backend.NFTABLES:
        nftables.refresh(sets)
    else:
        ipset.refresh(sets)
