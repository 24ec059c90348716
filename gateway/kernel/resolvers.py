"""The name servers that this machine's resolver asks (resolv.conf(5))."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Final

#: Where they stand; and whom systemd-resolved asks in turn, where its stub stands there.
RESOLV_CONF: Final = Path("/etc/resolv.conf")
BEHIND_STUB: Final = Path("/run/systemd/resolve/resolv.conf")
#: Addresses of that stub (systemd-resolved.service(8)).
_STUBS: Final = frozenset({"127.0.0.53", "127.0.0.54"})
#: MAXNS of <resolv.h>.
_MOST: Final = 3
#: Without any, the C library asks this machine itself.
_DEFAULT: Final = ("127.0.0.1",)


def read_resolvers(
    resolv_conf: Path = RESOLV_CONF, behind_stub: Path = BEHIND_STUB
) -> tuple[str, ...]:
    """Their addresses, in the order that they are asked."""
    found = name_servers(_text(resolv_conf)) or _DEFAULT
    if _STUBS & {*found}:
        return name_servers(_text(behind_stub)) or found
    return found


def name_servers(text: str) -> tuple[str, ...]:
    """Those of a file; what the C library would not understand is left out."""
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                address = ip_address(words[1].partition("%")[0])
            except ValueError:
                continue
            found.append(str(address))
    return tuple(dict.fromkeys(found[:_MOST]))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
