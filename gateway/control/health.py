"""The gateway in one look, put together from what it is made of."""

from __future__ import annotations

from collections.abc import Iterable

from gateway.assembly import Assembly
from gateway.control.running import OutboundHealth
from gateway.kernel.guard import Finding


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
