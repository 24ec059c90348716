"""Which host name goes with which address: the lease files of the DHCP servers in use.

Three formats, told apart by what is in them:

* dnsmasq (dnsmasq(8), ``--dhcp-leasefile``): a line is expiry, MAC, address, name, client id;
  of IPv6 leases: expiry, IAID, address, name, DUID
* ISC dhcpd (dhcpd.leases(5)): ``lease ADDRESS { … }``, where the last block of an address holds;
  of IPv6 ``ia-na "IAID DUID" { iaaddr ADDRESS { … } }``, with a name where dhcpd updates DNS
* Kea's memfile (Kea ARM, "Memfile - Basic Storage for Leases"): CSV, where the last line holds

What cannot be read in a file is passed over: servers write while we read.
"""

from __future__ import annotations

import math
import re
from calendar import timegm
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple

_MAC = re.compile(r"(?:[0-9a-f]{2}-)?([0-9a-f]{2}(?::[0-9a-f]{2}){5})", re.IGNORECASE)
_ISC_LEASE = re.compile(r"^lease\s+([0-9.]+)\s*\{(.*?)^\}", re.MULTILINE | re.DOTALL)
_ISC_MAC = re.compile(r"^\s*hardware\s+ethernet\s+([0-9a-f:]+)\s*;", re.MULTILINE | re.IGNORECASE)
_ISC_NAME = re.compile(r'^\s*client-hostname\s+"([^"\n]*)"\s*;', re.MULTILINE)
_ISC_ENDS = re.compile(
    r"^\s*ends\s+(?:(never)|epoch\s+(\d{1,12})|\d\s+(\d{4})/(\d\d)/(\d\d)\s+(\d\d):(\d\d):(\d\d))",
    re.MULTILINE,
)
_ISC_STATE = re.compile(r"^\s*binding\s+state\s+(\w+)\s*;", re.MULTILINE)
#: An association of a client's, by its IAID and DUID as a text with escapes, and its addresses.
_ISC_ASSOCIATION = re.compile(
    r'^ia-[nt]a\s+"((?:\\[0-7]{3}|\\.|[^"\\\n])*)"\s*\{(.*?)^\}', re.MULTILINE | re.DOTALL
)
_ISC_ADDRESS = re.compile(
    r"^\s+iaaddr\s+([0-9a-fA-F:.]+)\s*\{(.*?)^\s+\}", re.MULTILINE | re.DOTALL
)
_ISC_DNS_NAME = re.compile(
    r'^\s*set\s+ddns-(?:client-fqdn|fwd-name)\s*=\s*"([^"\n]*)"\s*;', re.MULTILINE
)
_ISC_ESCAPE = re.compile(rb"\\([0-7]{3}|.)", re.DOTALL)
_IAID_BYTES = 4
#: DUID-LLT and DUID-LL of Ethernet (RFC 8415 sections 11.2 and 11.4): what is before the MAC.
_DUID_BEFORE_MAC = {b"\0\1\0\1": 8, b"\0\3\0\1": 4}
#: Kea's ``state`` of a lease in use.
_KEA_ASSIGNED = "0"


class Lease(NamedTuple):
    """One lease: an address in canonical text, MAC and name in lower case, or empty.

    ``until`` is when it ends, in seconds since 1970 UTC; infinite for never.
    """

    address: str
    mac: str
    hostname: str
    until: float


def read_leases(text: str) -> dict[str, Lease]:
    """The leases in a file, by address."""
    start = text.lstrip()
    if start.startswith("address,"):
        found = _kea(text)
    elif _ISC_LEASE.search(text):
        found = _isc(text)
    elif _ISC_ASSOCIATION.search(text):
        found = _isc_v6(text)
    else:
        found = _dnsmasq(text)
    return {lease.address: lease for lease in found}


def _dnsmasq(text: str) -> Iterator[Lease]:
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4 or not _is_number(fields[0]):
            continue
        until = int(fields[0]) or math.inf
        name = "" if fields[3] == "*" else fields[3]
        yield from _lease(fields[2], fields[1], name, until)


def _isc(text: str) -> Iterator[Lease]:
    for address, block in _ISC_LEASE.findall(text):
        mac, name = _ISC_MAC.search(block), _ISC_NAME.search(block)
        yield from _lease(address, mac[1] if mac else "", name[1] if name else "", _isc_end(block))


def _isc_v6(text: str) -> Iterator[Lease]:
    for identity, association in _ISC_ASSOCIATION.findall(text):
        mac = _mac_of_duid(_unescaped(identity)[_IAID_BYTES:])
        for address, block in _ISC_ADDRESS.findall(association):
            name = _ISC_DNS_NAME.search(block)
            yield from _lease(address, mac, name[1] if name else "", _isc_end(block))


def _unescaped(text: str) -> bytes:
    """What dhcpd has written as printable characters and octal escapes."""
    return _ISC_ESCAPE.sub(
        lambda found: bytes((int(found[1], 8) & 0xFF,)) if len(found[1]) == 3 else found[1],
        text.encode(errors="replace"),
    )


def _mac_of_duid(duid: bytes) -> str:
    before = _DUID_BEFORE_MAC.get(duid[:4])
    return "" if before is None or len(duid) != before + 6 else duid[before:].hex(":")


def _isc_end(block: str) -> float:
    """When a lease ends; 0 where it is not in use."""
    state = _ISC_STATE.search(block)
    if state is not None and state[1] != "active":
        return 0.0
    ends = _ISC_ENDS.search(block)
    if ends is None or ends[1]:
        return math.inf
    if ends[2]:
        return float(ends[2])
    year, month, day, hour, minute, second = map(int, ends.groups()[2:])
    try:
        return float(timegm((year, month, day, hour, minute, second)))
    except ValueError:
        return 0.0


def _kea(text: str) -> Iterator[Lease]:
    header, *lines = text.lstrip().splitlines()
    columns = {name.strip(): number for number, name in enumerate(header.split(","))}
    wanted = [columns.get(name) for name in ("address", "hwaddr", "hostname", "expire", "state")]
    if None in wanted:
        return
    for line in lines:
        fields = line.split(",")
        if len(fields) < len(columns):
            continue
        address, mac, name, expire, state = (fields[at] for at in wanted if at is not None)
        until = float(expire) if _is_number(expire) and state == _KEA_ASSIGNED else 0.0
        yield from _lease(address, mac, name, until)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 12


def _lease(address: str, mac: str, name: str, until: float) -> Iterator[Lease]:
    try:
        canonical = str(ip_address(address))
    except ValueError:
        return
    matched = _MAC.fullmatch(mac)
    hardware = matched[1].lower() if matched else ""
    yield Lease(canonical, hardware, name.lower().removesuffix("."), until)
