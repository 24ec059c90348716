"""``gateway bench``: measure, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from gateway.cli.comparison import NEW_FILE, compare, deliver, shared_options, with_progress
from gateway.cli.options import json_option
from gateway.cli.show import write
from gateway.errors import GatewayError


@click.group()
def bench() -> None:
    """Measure this gateway beside plain forwarding and other proxies, in one run.

    Everything happens in network namespaces of this machine, each candidate in its own LAN:
    clients, a router, and a SOCKS5 server that is itself the far end. Rounds are interleaved,
    so that all meet the same conditions; compare ratios within a run, not figures of two runs.
    Needs root.

    \b
    Examples:
      gateway bench tcp
      gateway bench latency --quick
      gateway bench direct --output direct.json --svg direct.svg
    """


@bench.command()
@click.option("--redirect", is_flag=True, help="Measure this gateway in redirect mode, too.")
@shared_options
def tcp(redirect: bool, **choices: Any) -> None:
    """TCP: throughput and its CPU, new connections, their CPU and latency.

    Besides plain forwarding and this gateway, as it comes and with one worker, it measures what
    is installed of redsocks, sing-box, ipt2socks, v2ray and pproxy.

    \b
    Examples:
      gateway bench tcp --rounds 5 --output tcp.json --svg tcp.svg
      gateway bench tcp --candidate sing-box --scenario download
    """
    from gateway.lab.bench.tcp import suite

    compare(suite(redirect=redirect), **choices)


@bench.command()
@shared_options
def latency(**choices: Any) -> None:
    """First byte: how long a client waits where the SOCKS server is 50 ms away and back.

    Far from the server it is not CPU that counts, but how often something has to cross the
    link and back before the first byte of an answer is there:

    \b
      plain forwarding              2  connect; request and answer
      a SOCKS proxy, step by step   4  connect; greeting; SOCKS request; request and answer
      the handshake in one flight   3  connect; greeting with SOCKS request; request and answer
      a connection that was ready   2  SOCKS request; request and answer

    The first row, in round trips, is the median wait divided by a ping to the server in the
    same round. This gateway is measured as it comes (`handshake: auto`, which learns from its first
    flow, and `pool: auto`), without the pool, and with neither (`handshake: strict`); beside it,
    what is installed of redsocks, sing-box, ipt2socks, v2ray and pproxy. 20 clients
    connect, ask, and begin again. A p99 is worth more in a longer window.

    \b
    Examples:
      gateway bench latency
      gateway bench latency --rounds 5 --seconds 5 --output latency.json
    """
    from gateway.lab.bench.latency import suite

    compare(suite(), **choices)


@bench.command()
@shared_options
def tun(**choices: Any) -> None:
    """TUN: TCP that is taken from a TUN device; throughput, CPU and new connections.

    This gateway (`inbound.tcp: tun`), with all its workers and with one, beside sing-box's TUN
    inbound with each of its stacks, plain forwarding, and this gateway without the device.

    \b
    Examples:
      gateway bench tun
      gateway bench tun --scenario upload --candidate gvisor
    """
    from gateway.lab.bench.tun import suite

    compare(suite(), **choices)


@bench.command()
@shared_options
def udp(**choices: Any) -> None:
    """UDP: CPU of a datagram, what is lost, and how long an answer takes.

    The SOCKS server's relay is itself the far end. Three loads at a fixed rate, each lighter than
    what any candidate can carry: one flow of 1200 bytes from a sender that makes a system call
    for each datagram, the same from one that hands the kernel twenty at once (UDP_SEGMENT, as
    QUIC stacks do), and 1,000 flows of small datagrams with their answers. Then the highest rate
    of which nothing is lost, and 60 % of sing-box's offered to both. This gateway runs in one
    process; beside it, sing-box, the peer that relays UDP.

    \b
    Examples:
      gateway bench udp
      gateway bench udp --rounds 5 --seconds 2
    """
    from gateway.lab.bench.udp import suite

    compare(suite(), **choices)


@bench.command()
@shared_options
def direct(**choices: Any) -> None:
    """Flows that an address rule sends direct, beside forwarding with no gateway at all.

    The kernel carries them in both cases; the difference is what our rules cost. Ratios are to
    forwarding with connection tracking, which any router that translates addresses has, and
    without which flows cannot be marked; the first column has none.

    \b
    Examples:
      gateway bench direct
      gateway bench direct --scenario connections --rounds 100
    """
    from gateway.lab.bench.direct import suite

    compare(suite(), **choices)


@bench.command()
@shared_options
def icmp(**choices: Any) -> None:
    """ICMP echo: how much longer a ping takes than where the kernel forwards it.

    Pings go from the LAN through the TUN, leave by the gateway's ping sockets, and the answers
    come back the same way. Ratios are to forwarding with connection tracking.

    \b
    Examples:
      gateway bench icmp
      gateway bench icmp --rounds 20 --scenario IPv6
    """
    from gateway.lab.bench.icmp import suite

    compare(suite(), **choices)


@bench.command()
@shared_options
def queue(**choices: Any) -> None:
    """New flows a second that one worker decides by their first packet (`classify: nfqueue`).

    Every datagram begins a flow that goes direct: by what its packet tells, or because the name
    that a rule asks for is not in it. Beside it, flows that the kernel decides by itself, and
    plain forwarding, which is all that the client can send. CPU is the gateway's: what the
    kernel does with a packet after the answer is in it, as that happens in the worker's call.

    \b
    Examples:
      gateway bench queue
      gateway bench queue --rounds 5 --output queue.json
    """
    from gateway.lab.bench.queue import suite

    compare(suite(), **choices)


@bench.command()
@click.option(
    "--prefixes",
    type=click.IntRange(1000, 5_000_000),
    default=500_000,
    show_default=True,
    help="How many the changed list has.",
)
@shared_options
def reload(prefixes: int, **choices: Any) -> None:
    """How long a flow waits while a large rule set changes on disk.

    A client asks and waits through the gateway, another beside it by a rule that the kernel
    decides: what that one waits for is the machine's own doing. The list is compiled, loaded and
    put in force meanwhile, with one process that does all, and with workers of its own.

    \b
    Examples:
      gateway bench reload
      gateway bench reload --prefixes 100000 --output reload.json
    """
    from gateway.lab.bench.reload import suite

    compare(suite(prefixes), **choices)


@bench.command()
@click.option(
    "--flows",
    type=click.IntRange(20, 100_000),
    help="Flows to hold open; of peers, as many as descriptors allow.  [default: 20000]",
)
@shared_options
def idle(flows: int | None, **choices: Any) -> None:
    """Idle flows: the memory and the descriptors that one takes.

    A tenth of the flows is opened first, then the rest; what the rest adds, divided by its
    number, is what one flow costs: anonymous memory (heaps, stacks) and descriptors of all
    processes of the candidate. The kernel's own memory for sockets is not in it. A process
    keeps what it has once needed, so there is one round. Where descriptors are limited, this
    gateway gets more workers.

    \b
    Examples:
      gateway bench idle
      gateway bench idle --flows 2000 --candidate redsocks
    """
    from gateway.lab.bench.idle import suite
    from gateway.lab.bench.suite import QUICK, Sizes

    count = flows or (QUICK if choices["quick"] else Sizes()).idle_flows
    compare(suite(count), idle_flows=count, **choices)


@bench.command()
@click.option(
    "--minutes",
    type=click.FloatRange(0.05, 1440),
    default=10,
    show_default=True,
    help="How long all flows are there.",
)
@click.option(
    "--idle-flows",
    type=click.IntRange(2, 100_000),
    default=20_000,
    show_default=True,
    help="Flows that are opened and left alone.",
)
@click.option(
    "--active-flows",
    type=click.IntRange(1, 5_000),
    default=200,
    show_default=True,
    help="Flows that send all the time.",
)
@json_option
@click.option("--output", type=NEW_FILE, help="Write the JSON to a file, besides.")
@click.option("--svg", type=NEW_FILE, help="Draw the curves into a file, besides.")
def soak(
    minutes: float,
    idle_flows: int,
    active_flows: int,
    as_json: bool,
    output: Path | None,
    svg: Path | None,
) -> None:
    """Soak: many flows for a long time, and whether memory or descriptors grow.

    Idle flows, half of them over IPv6, are opened and left alone; active ones send 128 KiB a
    second and compare what comes back, and every tenth time another flow begins. Flows,
    descriptors and memory are looked at every two seconds, from before the first flow to after
    the last. Then as many flows come once more. Fails (1) where memory or descriptors grow in
    the second half of the time, a flow breaks, an idle one does not answer at the end,
    something stays behind, or the same flows take more memory the second time.

    \b
    Examples:
      gateway bench soak --svg soak.svg
      gateway bench soak --minutes 0.5 --idle-flows 500 --active-flows 20
    """
    from gateway.lab.bench.curves import draw
    from gateway.lab.bench.runner import circumstances
    from gateway.lab.bench.soak import Plan, run

    plan = Plan(minutes * 60, idle_flows, active_flows)
    record = with_progress(lambda progress: run(plan, progress))
    if svg is not None:
        write(svg, draw(record))
    deliver({**circumstances(), **record.to_json()}, record.lines(), as_json, output)
    if problems := list(record.problems()):
        raise GatewayError("the soak failed: " + "; ".join(problems))


@bench.command()
@click.option(
    "--rules",
    type=click.IntRange(10, 10_000),
    default=1000,
    show_default=True,
    help="Rules of the policy.",
)
@click.option(
    "--names",
    type=click.IntRange(1000, 10_000_000),
    default=1_000_000,
    show_default=True,
    help="Names in one list.",
)
@click.option(
    "--prefixes",
    type=click.IntRange(1000, 5_000_000),
    default=500_000,
    show_default=True,
    help="Prefixes in the other.",
)
@json_option
@click.option("--output", type=NEW_FILE, help="Write the JSON to a file, besides.")
def policy(rules: int, names: int, prefixes: int, as_json: bool, output: Path | None) -> None:
    """Decisions: the time that one takes, and what large rule sets cost.

    Rules of several kinds and two made-up lists, one of names and one of prefixes, which most
    flows get as far as. Loading is measured from text, where the lists are compiled, and from
    what was compiled. Memory is what two processes take more together once each has the policy
    and has decided flows by it; pages that they share count once. A stall is how long loading in
    one thread keeps another from running, in CPU time of the process. No traffic, and no root.

    \b
    Examples:
      gateway bench policy
      gateway bench policy --names 100000 --prefixes 50000 --json
    """
    from gateway.lab.bench.policy import Amounts, run
    from gateway.lab.bench.runner import circumstances

    amounts = Amounts(rules, names, prefixes)
    figures = with_progress(lambda progress: run(amounts, progress))
    deliver({**circumstances(), **figures.to_json()}, figures.lines(), as_json, output)
