"""Loads python-iptables without the compiler that it would look for itself by.

Its wrapper of libxtables is a module beside it. It asks ``ctypes.util`` for it first, by four
names, each of which is then looked for by gcc and ld: most of the time that a worker lives.
"""

from __future__ import annotations

import ctypes.util
from typing import Any, Final

_WRAPPER: Final = "xtwrapper"


def load() -> Any:
    """The module ``iptc``. Raises what its import raises."""
    find = ctypes.util.find_library

    def find_others(name: str) -> str | None:
        return None if _WRAPPER in name else find(name)

    ctypes.util.find_library = find_others
    try:
        import iptc
    finally:
        ctypes.util.find_library = find
    return iptc
