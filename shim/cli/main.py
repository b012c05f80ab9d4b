"""The command line's root. A command's module is imported when the command is called: shims call one, too."""

from __future__ import annotations

import importlib
import sys

import click

from shim.bootstrap.info import VERSION
from shim.errors import ShimError

_COMMANDS = ("check", "config", "env", "exec", "gc", "logs", "metrics", "ps", "template")


class Commands(click.Group):
    """One file of this package for each command."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        found: click.Command = getattr(importlib.import_module(f"shim.cli.{cmd_name}"), f"{cmd_name}_command")
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION)
def kata_py() -> None:
    """Look after a host that runs containers in virtual machines."""


def main() -> int:
    """The exit status. What goes wrong is one line on stderr."""
    try:
        status = kata_py(prog_name="kata-py", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except (ShimError, OSError) as error:
        print(f"kata-py: {error}", file=sys.stderr)
        return 1
    return status if isinstance(status, int) else 0
