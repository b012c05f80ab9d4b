"""The command line's root."""

from __future__ import annotations

import sys

import click

from shim.cli.template import template
from shim.errors import ShimError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def kata_py() -> None:
    """Look after a host that runs containers in virtual machines."""


kata_py.add_command(template)


def main() -> int:
    """The exit status. What goes wrong is one line on stderr."""
    try:
        kata_py(prog_name="kata-py", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return 130
    except (ShimError, OSError) as error:
        print(f"kata-py: {error}", file=sys.stderr)
        return 1
    return 0
