"""The gateway in one look, put together from what it is made of."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from gateway import logs
from gateway.assembly import Assembly
from gateway.control.running import OutboundHealth
from gateway.kernel.guard import Finding
from gateway.plan.lookups import Lookup

log = logging.getLogger(__name__)


def outbounds_health(assembly: Assembly, found: Iterable[Finding]) -> tuple[OutboundHealth, ...]:
    """Each way out, as the loop guard found it."""
    return tuple(
        OutboundHealth(
            name=finding.egress.outbound,
            type=assembly.config.outbound(finding.egress.outbound).type,
            ok=finding.ok,
            strategy=finding.egress.how,
            route=finding.route,
            reason=finding.reason,
            hint=finding.hint,
        )
        for finding in found
    )


def summary(assembly: Assembly) -> dict[str, object]:
    """What a log should say of a gateway that has come up."""
    config = assembly.config
    return {
        "mode": config.inbound.tcp,
        "port": config.inbound.port,
        "backend": assembly.backend.value,
        "rules": len(config.rules),
        "outbounds": len(config.outbounds),
        "workers": assembly.workers,
        "on_failure": config.inbound.on_failure,
    }


def warn_of_refused(found: Iterable[Finding]) -> None:
    """Say of each way out that must not be gone why not."""
    for finding in found:
        if not finding.ok:
            log.error(
                "outbound cannot be used: its flows are refused",
                extra=logs.fields(
                    outbound=finding.egress.outbound,
                    reason=finding.reason,
                    route=finding.route,
                    hint=finding.hint,
                ),
            )


def warn_of_lookups(lookups: Iterable[Lookup]) -> None:
    """Say whose server is looked up by the very way that needs it."""
    for lookup in lookups:
        said = logs.fields(hint=lookup.hint)
        log.warning("outbound %s: %s", lookup.outbound, lookup.reason, extra=said)
