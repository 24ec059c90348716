"""How many descriptors this process may have: two for each flow, more while bytes flow."""

from __future__ import annotations

import resource

#: Ample for every flow that a home has; above the hard limit of most service managers' default.
WANTED = 262_144


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as we may, to ``WANTED``; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((WANTED, max(WANTED, hard)), (hard, hard)):
        if soft >= min(limits[0], WANTED):
            return soft
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        except (OSError, ValueError):
            continue  # above the hard limit without CAP_SYS_RESOURCE, or above fs.nr_open
        return limits[0]
    return soft
