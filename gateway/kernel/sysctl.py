"""Kernel settings of the current network namespace, and the journal that takes them back.

A sysctl cannot carry a tag, so its previous value is written to ``sysctl.json`` in the run
directory *before* it is changed: a run that was killed leaves enough behind to restore it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from gateway.errors import ApplyError
from gateway.plan.model import Sysctl

_ROOT = Path("/proc/sys")

#: Writing the key rewrites these too (``inet_forward_change`` of net/ipv4/devinet.c,
#: ``addrconf_fixup_forwarding`` of net/ipv6/addrconf.c), so they are journaled with it.
_COLLATERAL = {
    "net.ipv4.ip_forward": (
        "net/ipv4/conf/all/accept_redirects",
        "net/ipv4/conf/*/forwarding",
    ),
    "net.ipv6.conf.all.forwarding": ("net/ipv6/conf/*/forwarding",),
}

#: Globs under /proc/sys of the settings that plans are made from, or may change.
PLANNED = (
    "net/ipv4/ip_forward",
    "net/ipv4/conf/*/accept_local",
    "net/ipv4/conf/*/rp_filter",
    "net/ipv4/conf/*/send_redirects",
    "net/ipv4/conf/*/src_valid_mark",
    "net/ipv4/ping_group_range",
    "net/ipv4/tcp_allowed_congestion_control",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_fastopen",
    "net/ipv6/conf/*/accept_ra",
    "net/ipv6/conf/*/disable_ipv6",
    "net/ipv6/conf/*/forwarding",
    "net/bridge/bridge-nf-call-ip*tables",
)


def path_of(key: str) -> Path:
    """The file behind a dotted name; ``/`` in it means a dot (``net.ipv4.conf.eth0/7.rp_filter``).

    Source: sysctl.d(5).
    """
    return _ROOT / key.translate(str.maketrans("./", "/."))


def key_of(path: Path) -> str:
    """The dotted name of a file under /proc/sys; the inverse of ``path_of``."""
    return str(path.relative_to(_ROOT)).translate(str.maketrans("./", "/."))


def read(key: str) -> str | None:
    """The value, or None where this kernel (or namespace) has no such setting.

    Of several numbers, one space between them: the kernel writes tabs, and takes either.
    """
    try:
        return " ".join(path_of(key).read_text().split())
    except OSError:
        return None


def read_matching(patterns: Iterable[str]) -> dict[str, str]:
    """Values of all settings whose path under /proc/sys matches one of the globs."""
    found = {}
    for pattern in patterns:
        for path in sorted(_ROOT.glob(pattern)):
            key = key_of(path)
            value = read(key)
            if value is not None:
                found[key] = value
    return found


def write(key: str, value: str) -> None:
    """Set it. Raises ``ApplyError`` where the kernel refuses."""
    try:
        path_of(key).write_text(value)
    except OSError as error:
        raise ApplyError(
            f"cannot set {key}={value}: {error.strerror}",
            hint=f"set it by hand (sysctl -w {key}={value}) or ask the owner of this container",
        ) from error


@dataclass(frozen=True, slots=True)
class _Change:
    """What one of our writes replaced; ``also`` holds what the kernel rewrote along with it."""

    ours: str
    before: str
    also: dict[str, str] = field(default_factory=dict)


class SysctlJournal:
    """The settings we changed, kept in ``run_dir``/sysctl.json."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / "sysctl.json"

    def previous(self) -> dict[str, str]:
        """What the settings that we changed were before, in the order of the changes."""
        return {key: change.before for key, change in self._load().items()}

    def set(self, setting: Sysctl) -> bool:
        """Make it so; False where it already was. Raises ``ApplyError``."""
        before = read(setting.key)
        if before == setting.value:
            return False
        if before is None:
            raise ApplyError(
                f"this kernel has no setting {setting.key} ({setting.reason})",
                hint="a module or CONFIG option is missing; gateway doctor says which",
            )
        changes = self._load()
        known = changes.get(setting.key)
        if known is not None and known.ours == before:
            changes[setting.key] = replace(known, ours=setting.value)
        else:
            also = read_matching(_COLLATERAL.get(setting.key, ()))
            changes[setting.key] = _Change(setting.value, before, also)
        self._save(changes)
        write(setting.key, setting.value)
        return True

    def restore(self, key: str) -> bool:
        """Put the previous value back, unless somebody else changed it meanwhile.

        Returns whether anything was written. Raises ``ApplyError``; the entry is then kept.
        """
        changes = self._load()
        change = changes.get(key)
        if change is None:
            return False
        still_ours = read(key) == change.ours
        if still_ours:
            write(key, change.before)
            for other, value in change.also.items():
                if read(other) not in (None, value):
                    write(other, value)
        del changes[key]
        self._save(changes)
        return still_ours

    def _load(self) -> dict[str, _Change]:
        try:
            entries = json.loads(self._path.read_text())
            return {key: _Change(**entry) for key, entry in entries.items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            raise ApplyError(
                f"{self._path} is damaged: {error}",
                hint="check forwarding and rp_filter by hand, then delete the file",
            ) from error

    def _save(self, changes: dict[str, _Change]) -> None:
        if not changes:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps({key: asdict(c) for key, c in changes.items()}, indent=1))
        draft.replace(self._path)
