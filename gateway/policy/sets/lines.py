"""Lists with one entry a line, in the ways that their makers write them.

Each reader takes a line without blanks around it; a comment or an empty line never gets
here. What has no place in a rule set is skipped by kind, never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from gateway.config.domains import DomainKind
from gateway.policy.sets.entries import Entries, read_interval

#: Reads one line into the entries.
LineReader = Callable[[Entries, str, int], None]
#: Told from time to time how much is done, from 0 to 1.
Progress = Callable[[float], None]

#: How often progress is told, in lines.
_PERIOD = 1 << 16

#: Names that hosts files have for the machine itself.
_LOCAL_NAMES = frozenset(
    {
        "localhost", "localhost.localdomain", "local", "broadcasthost", "ip6-localhost",
        "ip6-loopback", "ip6-localnet", "ip6-mcastprefix", "ip6-allnodes", "ip6-allrouters",
        "ip6-allhosts",
    }
)  # fmt: skip

#: Options of dnsmasq that name domains (dnsmasq(8)).
_DNSMASQ = frozenset({"server", "local", "address", "ipset", "nftset"})
#: Modifiers of a filter rule that change nothing of which names are meant.
_HARMLESS_MODIFIERS = frozenset({"important", "all", "document"})

#: The signs with which v2fly's source lists write kinds.
_V2FLY = {"full": DomainKind.EXACT, "domain": DomainKind.SUFFIX, "suffix": DomainKind.SUFFIX}


def read_lines(text: str, reader: LineReader, entries: Entries, progress: Progress) -> None:
    """Give each line with an entry in it to the reader."""
    lines = text.split("\n")
    for number, line in enumerate(lines, start=1):
        entry = line.strip()
        if entry and entry[0] not in "#!":
            reader(entries, entry, number)
        if not number % _PERIOD:
            progress(number / len(lines))


def without_comment(entry: str) -> str:
    """The entry without a comment behind it, which begins after a blank."""
    before, sign, _ = entry.partition(" #")
    return before.rstrip() if sign else entry


def text_line(entries: Entries, entry: str, line: int) -> None:
    """A CIDR, a name or a pattern; a rule of Clash's classical lists; v2fly's ``full:`` forms."""
    if entries.plain(entry):
        return
    entry = without_comment(entry).strip("'\"")
    sign, colon, rest = entry.partition(":")
    if colon and sign in _V2FLY:
        entries.name(_V2FLY[sign], rest.partition(" @")[0].strip(), line)
    elif colon and sign == "regexp":
        entries.regex(rest, line)
    elif "," in entry and sign != "regex":
        classical(entries, entry, line)
    else:
        entries.either(entry, line)


def classical(entries: Entries, entry: str, line: int) -> None:
    """A rule of Clash without its target: ``DOMAIN-SUFFIX,a.example``."""
    kind, _, rest = entry.partition(",")
    kind = kind.strip().upper()
    value = rest.partition(",")[0].strip()
    if kind in ("DOMAIN", "HOST"):
        entries.name(DomainKind.EXACT, value, line)
    elif kind in ("DOMAIN-SUFFIX", "HOST-SUFFIX"):
        entries.name(DomainKind.SUFFIX, value, line)
    elif kind in ("DOMAIN-KEYWORD", "HOST-KEYWORD"):
        entries.keyword(value, line)
    elif kind == "DOMAIN-REGEX":
        entries.regex(rest.strip(), line)  # a pattern may have commas
    elif kind == "DOMAIN-WILDCARD":
        parts = (".*" if sign == "*" else "." if sign == "?" else re.escape(sign) for sign in value)
        entries.regex(f"^{''.join(parts)}$", line)
    elif kind in ("IP-CIDR", "IP-CIDR6"):
        entries.network(value, line)
    else:
        entries.skip(
            f"{kind} rule" if re.fullmatch(r"[A-Z0-9-]{1,24}", kind) else "rule", line, entry
        )


def hosts_line(entries: Entries, entry: str, line: int) -> None:
    """An address and names, as in hosts(5); the names are meant, each alone."""
    address, *names = without_comment(entry).split()
    if read_interval(address) is None or not names:
        entries.skip("not a line of a hosts file", line, entry)
        return
    for name in names:
        if name.startswith("#"):
            return
        if name.lower() not in _LOCAL_NAMES:
            entries.name(DomainKind.EXACT, name, line)


def adguard_line(entries: Entries, entry: str, line: int) -> None:
    """A filter rule of AdGuard's or Adblock's: ``||a.example^``, a name, or a hosts line."""
    if entry.startswith("[") and entry.endswith("]"):
        return  # the head: [Adblock Plus 2.0]
    if "##" in entry or "#@#" in entry or "#?#" in entry or "#$#" in entry:
        entries.skip("rule for page elements", line, entry)
    elif entry.startswith("@@"):
        entries.skip("exception", line, entry)
    elif entry.startswith("||"):
        _anchored(entries, entry, line)
    elif entry.startswith("/") and entry.rstrip("^").endswith("/") and len(entry) > 2:
        entries.regex(entry.rstrip("^")[1:-1], line)
    elif entry.startswith(("|", "/", "$")) or "$" in entry or "^" in entry:
        entries.skip("rule for URLs", line, entry)
    elif " " in entry or "\t" in entry:
        hosts_line(entries, entry, line)
    else:
        entries.either(entry, line)


def _anchored(entries: Entries, entry: str, line: int) -> None:
    pattern, _, modifiers = entry.removeprefix("||").partition("$")
    if not set(filter(None, modifiers.split(","))) <= _HARMLESS_MODIFIERS:
        entries.skip("rule with modifiers", line, entry)
        return
    name = pattern.rstrip("|").removesuffix("^")
    if "/" in name or "^" in name or ":" in name:
        entries.skip("rule for URLs", line, entry)
    elif read_interval(name) is not None:
        entries.network(name, line)
    elif name.startswith("*.") and "*" not in name[2:]:
        entries.name(DomainKind.BELOW, name[2:], line)
    elif "*" in name:
        inner = ".*".join(map(re.escape, name.split("*")))
        entries.regex(rf"(?:^|\.){inner}$", line)
    else:
        entries.name(DomainKind.SUFFIX, name, line)


def dnsmasq_line(entries: Entries, entry: str, line: int) -> None:
    """An option of dnsmasq that names domains, each with all below it."""
    option, _, value = without_comment(entry).partition("=")
    value = value.strip()
    if option.strip() not in _DNSMASQ or not value.startswith("/"):
        entries.skip("other option of dnsmasq", line, entry)
        return
    for name in value.split("/")[1:-1]:
        entries.name(DomainKind.SUFFIX, name.removeprefix("."), line)


_SIGNS_OF: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("dnsmasq", re.compile(r"(server|local|address|ipset|nftset)\s*=\s*/")),
    ("adguard", re.compile(r"\|\||@@|\[Adblock|\[AdGuard|.*(##|#@#)|/.*/$")),
    ("hosts", re.compile(r"(\d+\.\d+\.\d+\.\d+|[0-9a-fA-F:]*::?[0-9a-fA-F:]*)\s+[^\s,#]")),
)
#: So many lines with an entry tell a list's kind.
_LOOKED_AT = 200


def kind_of(text: str) -> str:
    """Which way a list is written: the first whose signs are on most of its first lines.

    One sign of AdGuard's is enough: its lists have names and hosts lines as well.
    """
    looked = list(_first_entries(text))
    votes = {kind: sum(1 for e in looked if sign.match(e)) for kind, sign in _SIGNS_OF}
    if votes["adguard"]:
        return "adguard"
    kind = max(votes, key=lambda each: votes[each])
    return kind if votes[kind] * 2 > len(looked) else "text"


def _first_entries(text: str) -> Iterator[str]:
    start = found = 0
    while found < _LOOKED_AT and start < len(text):
        end = text.find("\n", start)
        end = len(text) if end < 0 else end
        entry = text[start:end].strip()
        start = end + 1
        if entry and (entry[0] not in "#!"):
            found += 1
            yield entry


LINE_READERS: dict[str, LineReader] = {
    "text": text_line,
    "hosts": hosts_line,
    "adguard": adguard_line,
    "dnsmasq": dnsmasq_line,
}
