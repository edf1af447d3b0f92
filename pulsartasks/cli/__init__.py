"""The command line: one module for each command."""

from __future__ import annotations

import importlib
from typing import Any

import click

_COMMANDS = {
    "worker": ("pulsartasks.cli.worker", "Run an app's tasks."),
    "beat": ("pulsartasks.cli.beat", "Send what the schedule says, and move what is due."),
    "topics": ("pulsartasks.cli.topics", "List an app's topics, and make them."),
    "dlq": ("pulsartasks.cli.dlq", "Look at dead letters, and send them again."),
}


class _Commands(click.Group):
    """Imports a command's module when it is run, so that ``--help`` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] in ("-A", "--app"):  # where Celery has it
            raise click.UsageError(f"{args[0]} comes after the command: pulsartasks worker -A MODULE:APP", ctx)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="pulsartasks", prog_name="pulsartasks")
def main() -> Any:
    """Tasks on Apache Pulsar."""
