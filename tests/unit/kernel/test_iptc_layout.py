"""Arrays of xtables options in the layouts of iptables before and from 1.8.11."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from gateway.kernel import iptc_layout


class OldEntry(ctypes.Structure):
    """``struct xt_option_entry`` as python-iptables 1.2 knows it: the ends that matter here."""

    _fields_ = (("name", ctypes.c_char_p), ("flags", ctypes.c_uint), ("maximum", ctypes.c_uint))


class NewEntry(ctypes.Structure):
    """The same with the field of iptables 1.8.11."""

    _fields_ = (*OldEntry._fields_, ("base", ctypes.c_uint))


class Parser:
    """Stands for ``iptc.xtables.xtables``, which walks the array it is given."""

    def _option_lookup(self, entries: Iterable[OldEntry], name: bytes) -> OldEntry | None:
        return next((entry for entry in entries if entry.name == name), None)

    def _options_fcheck(self, name: bytes, flags: int, table: Iterable[OldEntry]) -> list[bytes]:
        return [name + entry.name for entry in table if entry.flags & flags]


def options(layout: type[ctypes.Structure], names: list[bytes], base: int = 0) -> ctypes.Array:
    entries = [layout(name, 1, 9) for name in names]
    if base:
        entries = [layout(name, 1, 9, base) for name in names]
    return (layout * (len(names) + 1))(*entries)


@pytest.mark.parametrize("names", [[], [b"a"], [b"a", b"b"], [b"a", b"b", b"c"]])
@pytest.mark.parametrize(("layout", "base"), [(OldEntry, 0), (NewEntry, 0), (NewEntry, 16)])
def test_every_option_is_found(
    layout: type[ctypes.Structure], base: int, names: list[bytes]
) -> None:
    class Patched(Parser):
        pass

    module = SimpleNamespace(xtables=Patched, xt_option_entry=OldEntry)
    iptc_layout.support_both(module)
    array = options(layout, names, base)
    pointer = ctypes.cast(array, ctypes.POINTER(OldEntry))
    parser = Patched()
    assert parser._options_fcheck(b"", 1, pointer) == names
    assert parser._option_lookup(pointer, b"missing") is None
    for index, name in enumerate(names):
        found = parser._option_lookup(pointer, name)
        assert found is not None
        # The C side gets the entry itself, not a copy that would lack the new field.
        assert ctypes.addressof(found) == ctypes.addressof(array[index])
