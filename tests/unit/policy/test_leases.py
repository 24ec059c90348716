"""Lease files of three DHCP servers, and bytes that are none of theirs."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.kernel.lease_files import LeaseFiles
from gateway.policy.leases import Lease, read_leases

DNSMASQ = """\
1795000000 02:00:5e:00:53:01 192.168.20.5 Tv-Set 01:02:00:5e:00:53:01
0 02:00:5e:00:53:02 192.168.20.6 * *
duid 00:01:00:01:2c:5a:3a:a4:02:00:5e:00:53:ff
1795000000 5898241 fd00:20::5 tv-set 00:01:00:01:2c
"""
ISC = """\
# The format of this file is documented in the dhcpd.leases(5) manual page.
authoring-byte-order little-endian;
server-duid "\\000\\001";
lease 192.168.20.5 {
  starts 6 2026/11/21 10:00:00;
  ends 6 2026/11/21 12:00:00;
  binding state active;
  hardware ethernet 02:00:5e:00:53:09;
  client-hostname "old";
}
lease 192.168.20.5 {
  starts 6 2026/11/21 12:00:00;
  ends 6 2026/11/21 14:00:00;
  binding state active;
  next binding state free;
  hardware ethernet 02:00:5E:00:53:01;
  uid "\\001\\002";
  set vendor = "a } b";
  client-hostname "TV-Set";
}
lease 192.168.20.6 {
  ends never;
  hardware ethernet 02:00:5e:00:53:02;
}
lease 192.168.20.7 {
  ends epoch 1795000000; # Thu Nov 18
  binding state free;
  client-hostname "gone";
}
"""
#: An IAID of four bytes and a DUID-LLT, a DUID-LL, and a DUID-EN, as dhcpd 4.4 writes them.
ISC6 = r"""# The format of this file is documented in the dhcpd.leases(5) manual page.
server-duid "\000\001\000\001+\216\362\000\002\000^\000S\377";

ia-na "S\000\000\001\000\001\000\001+\"\\\000\002\000^\000S\001" {
  cltt 6 2026/11/21 12:00:00;
  iaaddr fd00:20::5 {
    binding state active;
    preferred-life 3600;
    max-life 7200;
    ends 6 2026/11/21 14:00:00;
    set ddns-fwd-name = "tv-set.";
  }
}

ia-na "S\000\000\002\000\003\000\001\002\000^\000S\002" {
  cltt 6 2026/11/21 12:00:00;
  iaaddr fd00:20::6 {
    binding state active;
    ends never;
  }
  iaaddr fd00:20::7 {
    binding state expired;
    ends 6 2026/11/21 14:00:00;
    set ddns-client-fqdn = "gone";
  }
}

ia-ta "S\000\000\003\000\002\000\000\000\011abc" {
  iaaddr FD00:20::8 {
    binding state active;
    ends never;
  }
}
"""
KEA4 = """\
address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context,pool_id
192.168.20.5,02:00:5e:00:53:09,,3600,1794000000,1,0,0,old,0,,0
192.168.20.5,02:00:5e:00:53:01,01:02,3600,1795000000,1,0,0,tv-set.,0,,0
192.168.20.7,02:00:5e:00:53:07,,3600,1795000000,1,0,0,declined,1,,0
"""
KEA6 = """\
address,duid,valid_lifetime,expire,subnet_id,pref_lifetime,lease_type,iaid,prefix_len,fqdn_fwd,fqdn_rev,hostname,hwaddr,state
FD00:20::5,00:01,3600,1795000000,1,1800,0,1,128,0,0,tv-set,02:00:5e:00:53:01,0
"""
TV = "02:00:5e:00:53:01"


@pytest.mark.parametrize(
    ("text", "leases"),
    [
        (
            DNSMASQ,
            [
                Lease("192.168.20.5", TV, "tv-set", 1795000000),
                Lease("192.168.20.6", "02:00:5e:00:53:02", "", math.inf),
                Lease("fd00:20::5", "", "tv-set", 1795000000),
            ],
        ),
        (
            ISC,
            [
                Lease("192.168.20.5", TV, "tv-set", 1795269600),
                Lease("192.168.20.6", "02:00:5e:00:53:02", "", math.inf),
                Lease("192.168.20.7", "", "gone", 0),
            ],
        ),
        (
            ISC6,
            [
                Lease("fd00:20::5", TV, "tv-set", 1795269600),
                Lease("fd00:20::6", "02:00:5e:00:53:02", "", math.inf),
                Lease("fd00:20::7", "02:00:5e:00:53:02", "gone", 0),
                Lease("fd00:20::8", "", "", math.inf),
            ],
        ),
        (
            KEA4,
            [
                Lease("192.168.20.5", TV, "tv-set", 1795000000),
                Lease("192.168.20.7", "02:00:5e:00:53:07", "declined", 0),
            ],
        ),
        (KEA6, [Lease("fd00:20::5", TV, "tv-set", 1795000000)]),
        ("", []),
        ("address,x\n1,2\n", []),
    ],
    ids=["dnsmasq", "isc", "isc6", "kea4", "kea6", "empty", "strange"],
)
def test_formats(text: str, leases: list[Lease]) -> None:
    assert list(read_leases(text).values()) == leases


@pytest.mark.parametrize(
    "text", [DNSMASQ, ISC, ISC6, KEA4, KEA6], ids=["dnsmasq", "isc", "isc6", "kea4", "kea6"]
)
@given(data=st.data())
def test_a_file_that_is_being_written(text: str, data: st.DataObject) -> None:
    """Cut anywhere, or with a piece of it replaced: what is read has the shape of a lease."""
    start = data.draw(st.integers(0, len(text)))
    piece = data.draw(st.text(alphabet='0123456789abcdef:.,{}/" \n;-xé٣', max_size=12))
    for damaged in (text[:start], text[:start] + piece + text[start + len(piece) :]):
        for address, lease in read_leases(damaged).items():
            assert address == lease.address
            assert lease.mac == "" or len(lease.mac) == 17
            assert lease.until >= 0


@given(st.text(max_size=200))
def test_any_text(text: str) -> None:
    for start in ("", "address,hwaddr,hostname,expire,state\n", "lease 10.0.0.1 {\n", 'ia-na "'):
        read_leases(start + text)


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path, now = tmp_path / "leases", [0.0]
    files = LeaseFiles([str(path)], clock=lambda: now[0], wall=lambda: 1794999999)
    assert files.hostname("192.168.20.5", None) is None
    path.write_text(DNSMASQ)
    now[0] += 1
    assert files.hostname("192.168.20.5", None) is None
    now[0] += 1
    assert files.hostname("192.168.20.5", None) == "tv-set"
    assert files.hostname("192.168.20.6", None) is None
    assert files.hostname("fd00:20::99", TV) == "tv-set", "by the MAC of the IPv4 lease"
    path.write_text(DNSMASQ.replace("Tv-Set", "Projector"))
    os.utime(path, ns=(1, 1))
    now[0] += 2
    assert files.hostname("192.168.20.5", TV) == "projector"
    path.unlink()
    now[0] += 2
    assert files.hostname("192.168.20.5", TV) is None


def test_a_lease_ends(tmp_path: Path) -> None:
    path, wall = tmp_path / "leases", [1794999999.0]
    path.write_text(DNSMASQ)
    files = LeaseFiles([str(path)], wall=lambda: wall[0])
    assert files.hostname("192.168.20.5", None) == "tv-set"
    wall[0] += 1
    assert files.hostname("192.168.20.5", None) is None


def test_a_file_that_cannot_be_read_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    files = LeaseFiles([str(tmp_path / "missing")], clock=lambda: now[0])
    for _ in range(3):
        assert files.hostname("192.168.20.5", None) is None
        now[0] += 10
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'missing'} cannot be read: No such file or directory"
    ]
