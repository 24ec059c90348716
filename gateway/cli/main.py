"""The ``gateway`` command: which commands there are, and how errors reach a person."""

from __future__ import annotations

from importlib import import_module
from typing import IO, Any

import click

from gateway.errors import ConfigError, GatewayError

#: Where each command is, and its line in ``gateway --help``. A command's module is loaded
#: only when that command runs: ``status`` must not wait for libraries that only ``run`` needs.
COMMANDS = {
    "init": ("gateway.cli.configuration:init", "Write a first configuration for this machine."),
    "check": ("gateway.cli.configuration:check", "Say whether the configuration would work."),
    "plan": ("gateway.cli.planning:plan", "Show what would be changed in the kernel."),
    "run": ("gateway.cli.run:run", "Run the gateway until it is told to stop."),
    "up": ("gateway.cli.kernel_state:up", "Put the kernel state in place, without a listener."),
    "down": ("gateway.cli.kernel_state:down", "Remove everything of ours from the kernel."),
    "status": ("gateway.cli.asking:status", "Say whether the gateway runs and is well."),
    "flows": ("gateway.cli.asking:flows", "List the flows that pass through the gateway."),
    "groups": ("gateway.cli.groups:groups", "List groups of outbounds, and whom they take."),
    "select": ("gateway.cli.groups:select", "Choose the member that a group takes."),
    "reload": ("gateway.cli.asking:reload", "Put a changed configuration in force."),
    "explain": ("gateway.cli.explain:explain", "Say what would become of one flow, and why."),
    "rules": ("gateway.cli.rules:rules", "Look into rule sets; convert and fetch lists."),
    "doctor": ("gateway.cli.doctor:doctor", "Look for what is wrong here, with cures."),
    "demo": ("gateway.cli.lab:demo", "Show it all at work in a LAN made of namespaces."),
    "lab": ("gateway.cli.lab:lab", "Try every way out of a routing loop (lab loops)."),
    "bench": ("gateway.cli.bench:bench", "Measure throughput, latency and memory."),
    "test": ("gateway.cli.lab:test", "Run the test suite of a checkout."),
    "schema": ("gateway.cli.configuration:schema", "Print the JSON schema of the configuration."),
    "version": ("gateway.cli.about:version", "Print the version."),
}

EXIT_INTERRUPTED = 130


class Failure(click.ClickException):
    """An error as a person sees it: what failed, and on a line of its own the cure."""

    def __init__(self, error: GatewayError) -> None:
        super().__init__(str(error))
        self.hint = error.hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to standard error."""
        click.echo(f"{click.style('error:', fg='red', bold=True)} {self.message}", file, err=True)
        if self.hint:
            click.echo(f"{click.style('hint:', bold=True)} {self.hint}", file, err=True)


class ConfigFailure(Failure):
    """The same for a configuration with problems, with an exit status of its own."""

    exit_code = 2


class _Commands(click.Group):
    """A group whose commands are loaded when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Names in the order of the table, which is the order of a first visit."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Load one command."""
        if cmd_name not in COMMANDS:
            return None
        module, _, name = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or an error that names the nearest one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            near = get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            said = f"{error.message} Did you mean {near[0]}?"
            raise click.UsageError(said, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> object:
        """Run a command; an expected error ends as a sentence, never as a traceback."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            raise ConfigFailure(error) from error
        except GatewayError as error:
            raise Failure(error) from error
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)


@click.command(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Divert a LAN's traffic through proxies, by rules, without touching its machines.

    A first visit: `gateway init` writes a configuration, `gateway check` proves it,
    `gateway plan` shows what it would change, `gateway run` does it. `gateway doctor`
    explains a machine on which it does not work. `gateway COMMAND --help` tells more.
    """


def main() -> None:
    """Entry point of the installed command and of ``python -m gateway``."""
    cli(prog_name="gateway")
