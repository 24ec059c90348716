"""What was seen in the first bytes of a flow."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

#: RFC 1035 section 2.3.4.
_LONGEST_NAME: Final = 253
#: Letters, digits, hyphen (RFC 1123 section 2.1), and the underscore, which is met in practice.
#: Where in a label a hyphen may stand is not looked at: who asks for ``-a.example`` must still
#: meet the rule for ``+.example``. A last label that makes it an IPv4 address, in any of the
#: ways that programs read those (the WHATWG URL standard, "ends in a number"), is refused.
_NAME: Final = re.compile(
    rb"(?!(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?$)([a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*)\.?"
)


class Sighting(NamedTuple):
    """``protocol`` and ``name`` as far as they are known; empty where they are not.

    ``complete``: more bytes would tell nothing more. ``ech``: the hello carries the
    extension for an encrypted hello, so that ``name`` may be but the outer one, of a server
    that many sites stand behind. Most browsers always send it, with random bytes where
    they have no key, and nobody on the way can tell these apart.
    """

    protocol: str = ""
    name: str = ""
    complete: bool = False
    ech: bool = False


#: Nothing can be said before there is more.
MORE: Final = Sighting()
#: Nobody knows it, and more bytes would not help.
UNKNOWN: Final = Sighting(complete=True)


def host_name(raw: bytes) -> str:
    """A host name as rules have it: lower case, without the dot at its end.

    Empty for an address, and for what is not of the characters of host names.
    """
    if len(raw) > _LONGEST_NAME + 1:
        return ""
    name = _NAME.fullmatch(raw.lower())
    return "" if name is None or len(name[1]) > _LONGEST_NAME else name[1].decode()
