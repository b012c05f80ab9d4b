"""`kata-py logs`: what a sandbox's shim logged and what its guest's console printed.

Both are kept in the sandbox's runtime directory (`shim.logfile`), bounded, and go with it. Of a restored VM the
console begins with its restoration.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import click

from shim.cli import sandboxes
from shim.cli.table import as_json, echo_json
from shim.logfile import CONSOLE_LOG, SHIM_LOG, read

_LINE = re.compile(r'time="(?P<time>[^"]*)" level=(?P<level>\w+) msg=(?P<rest>.*)')
_POLL_S = 0.3


@click.command("logs")
@sandboxes.argument
@sandboxes.namespace_option
@click.option("--shim", "only", flag_value="shim", help="The shim's log alone.")
@click.option("--console", "only", flag_value="console", help="The guest's console alone.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="The last N lines.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until the sandbox is gone.")
@as_json
def logs_command(
    sandbox: str, namespace: str | None, only: str | None, tail: int | None, *, follow: bool, as_json: bool
) -> None:
    """Show the shim's log and the guest's console of a sandbox, in the order of time."""
    record = sandboxes.pick(sandbox, namespace)
    names = [name for name in ("shim", "console") if only in (None, name)]
    lines = _read(record.run_dir, names)
    shown = lines[len(lines) - min(tail, len(lines)) :] if tail is not None else lines
    if as_json:
        echo_json([{"time": at, "source": source, "line": line} for at, source, line in shown])
        return
    _print(shown, labelled=len(names) > 1)
    while follow and (new := _read(record.run_dir, names)):
        _print(_after(lines, new), labelled=len(names) > 1)
        lines = new
        time.sleep(_POLL_S)


Line = tuple[str, str, str]  # time, source, text


def _read(run_dir: str, names: list[str]) -> list[Line]:
    files = {"shim": SHIM_LOG, "console": CONSOLE_LOG}
    return sorted(
        (line for name in names for line in _lines(name, read(f"{run_dir}/{files[name]}"))), key=_time
    )


def _time(line: Line) -> str:
    return line[0]


def _lines(source: str, text: str) -> Iterator[Line]:
    for line in text.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            continue  # the first line of a file that was being turned over
        said = _unquoted(match["rest"]) if source == "console" else f"{match['level']} {match['rest']}"
        yield match["time"], source, said


def _unquoted(text: str) -> str:
    """What `shim.log` has quoted, but for what a terminal would obey."""
    if not text.startswith('"'):
        return text
    return text[1:-1].replace('\\"', '"').replace("\\\\", "\\")


def _after(old: list[Line], new: list[Line]) -> list[Line]:
    seen = set(old)
    return [line for line in new if line not in seen]


def _print(lines: list[Line], *, labelled: bool) -> None:
    for at, source, text in lines:
        click.echo(f"{at[11:23]} {source:8}{text}" if labelled else f"{at[11:23]} {text}")
