"""What a worker for iptables is asked, and answers. Both ends are this program: pickled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gateway.plan.addresses import Family
from gateway.plan.xt import XtTable


@dataclass(frozen=True, slots=True)
class Request:
    """``read``: what is ours. ``apply``: make it ``tables`` and nothing else.

    ``scratch``: work in a network namespace of its own, to see what the kernel can do.
    """

    family: Family
    job: Literal["read", "apply"]
    tables: tuple[XtTable, ...] = ()
    scratch: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """``tables``: what is (``read``) or was (``apply``) ours. ``error`` is empty on success."""

    tables: tuple[XtTable, ...] = ()
    changed: bool = False
    error: str = ""
    hint: str = ""
