"""Commands around the lab: ``demo``, ``lab loops`` and ``test``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gateway.cli.options import json_option
from gateway.errors import GatewayError

_CHECKOUT = Path(__file__).resolve().parents[2]


@click.command()
@click.option("--keep", is_flag=True, help="Leave the LAN and the gateway up, to play with.")
@click.option("--remove", is_flag=True, help="Only remove what an earlier --keep left up.")
def demo(keep: bool, remove: bool) -> None:
    """Show the gateway at work, in a LAN made of network namespaces on this machine.

    Two clients in two subnets, a router that runs the gateway, and an outside with SOCKS
    servers. Real traffic goes through, and a table shows for each flow which rule fired
    and whom the server saw. Afterwards it proves that rules, routes and settings are as
    before. Needs root; takes under a minute and touches nothing outside its namespaces.

    \b
    Examples:
      gateway demo
      gateway demo --keep
    """
    from gateway.lab.demo import demo as run_demo

    run_demo(keep=keep, remove=remove)


@click.group()
def lab() -> None:
    """Try things out in network namespaces, with real traffic.

    The LAN, its router and the internet are made for it on this machine, and nothing
    outside of them is touched. Needs root.

    \b
    Example:
      gateway lab loops
    """


@lab.command()
@click.argument("parts", metavar="[PART]...", nargs=-1)
@click.option("--list", "listing", is_flag=True, help="Only say which parts there are.")
@click.option("--details", is_flag=True, help="Print each thing tried, with whom, or why not.")
@json_option
@click.pass_context
def loops(
    ctx: click.Context, parts: tuple[str, ...], listing: bool, details: bool, as_json: bool
) -> None:
    """Try every way out of a routing loop, and print what came of it as a table.

    Each technique is tried without what prevents the loop (which must then be seen), with
    it, and while the network changes: another router, another address, no default route,
    no link, another uplink. IPv4 and IPv6. Each PART shows one way in which traffic is taken;
    without any, all are tried, which takes some minutes. Needs root, and touches nothing
    outside its namespaces; Ctrl-C ends it, and removes them. Exits with 1 when something is
    not as it should be.

    \b
    Examples:
      gateway lab loops
      gateway lab loops --list
      gateway lab loops halves programs --details
      gateway lab loops --json | jq '.parts[].cells[] | select(.ok | not)'
    """
    from gateway.lab.loops_table import listing as list_parts
    from gateway.lab.loops_table import show

    if listing:
        click.echo(list_parts())
    elif not show(parts, as_json=as_json, details=details):
        ctx.exit(1)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def test(arguments: tuple[str, ...]) -> None:
    """Run the test suite; only in a checkout of the source, as root.

    Runs `./gw test` there, which also installs what the tests need. Arguments are given to
    pytest.

    \b
    Examples:
      gateway test
      gateway test tests/unit -k socks5
    """
    launcher = _CHECKOUT / "gw"
    if not launcher.exists():
        raise GatewayError(
            "the tests are not installed with the gateway",
            "get the source, and run `sudo ./gw test` there",
        )
    os.execv(launcher, [str(launcher), "test", *arguments])  # noqa: S606
