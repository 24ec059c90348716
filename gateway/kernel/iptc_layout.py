"""Makes python-iptables read the options of newer xtables extensions.

libxtables of iptables 1.8.11 appended a field to ``struct xt_option_entry`` (xtables.h,
``base``) without a new version number. python-iptables 1.2 steps through the array of options
with the old size, and so finds only the first option of each extension.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

#: Nothing is mapped below this address, so a smaller number is no pointer.
_LOWEST_POINTER = 4096


def support_both(xtables: Any) -> None:
    """Patch the module ``iptc.xtables``; to be called once, right after the import."""
    parser = xtables.xtables
    for method in ("_option_lookup", "_options_fcheck"):
        setattr(parser, method, _over_entries(getattr(parser, method), xtables.xt_option_entry))


def _over_entries(method: Any, structure: Any) -> Any:
    """The method, with every array of options it is given replaced by its real entries."""
    array = ctypes.POINTER(structure)

    def patched(*arguments: Any) -> Any:
        return method(*(_entries(a, structure) if isinstance(a, array) else a for a in arguments))

    return patched


def _entries(array: Any, structure: Any) -> Iterator[Any]:
    """The entries of an array that ends with one without a name.

    In the old layout the first entry is followed by the next one's name, which is a pointer
    (or the null pointer of the end); in the new one by a number base, 0 to 36, and padding.
    """
    start, size = ctypes.addressof(array.contents), ctypes.sizeof(structure)
    following = ctypes.c_size_t.from_address(start + size).value
    if 0 <= following < _LOWEST_POINTER:
        size += ctypes.sizeof(ctypes.c_size_t)
    entry = structure.from_address(start)
    while entry.name:
        yield entry
        start += size
        entry = structure.from_address(start)
