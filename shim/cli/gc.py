"""`kata-py gc`: what sandboxes have left whose shims are dead, and whom nobody has cleaned up after.

Mostly containerd does: it runs the shim's `delete` when a shim has gone, also when it comes back itself. Left is what
it had no part in, or what `delete` could not remove. This does what `delete` does, by the same record.

A sandbox is left alone as long as its shim answers or its process (by pid and start time) lives, and while `start` or
`delete` are at work on it, which hold its lock. To a containerd that has just seen its shim die it is left, too, by
looking twice, further apart than a `delete` may take. Who comes afterwards finds nothing, which is fine with `delete`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import click

from shim.bootstrap import address
from shim.bootstrap.delete import lives
from shim.cli import sandboxes
from shim.cli.table import as_json, echo_json, table
from shim.config.load import load
from shim.config.model import Config
from shim.errors import DeadlineExceeded
from shim.record import Record, left, lock, teardown
from shim.template.store import Store

# containerd gives `delete` 5 s.
_APART_S = 6.0
_REMOVE_S = 10.0
_COLUMNS = (("OF", 30), ("WHAT", 11), ("WHICH", 39))


@dataclass(slots=True)
class Leftover:
    """Of one owner: things by what and which, how they are removed (what stayed, in words), and what came of it."""

    owner: str
    things: list[tuple[str, str]]
    remove: Callable[[], list[str]]
    problems: list[str] = field(default_factory=list)


@click.command("gc")
@click.option("--remove", is_flag=True, help="Remove it.")
@click.option("-n", "--namespace", help="Of sandboxes in this namespace of containerd's only.")
@as_json
def gc_command(*, remove: bool, namespace: str | None, as_json: bool) -> int:
    """List what is left of sandboxes whose shims are dead: processes, mounts, cgroups, directories; and half-made
    templates.

    The exit status is 1 if there is something, with --remove if something stays.
    """
    config = load()
    found = leftovers(config, namespace)
    if found and remove:
        time.sleep(_APART_S)
        still = {item.owner for item in leftovers(config, namespace)}
        found = [item for item in found if item.owner in still]
        for item in found:
            item.problems = item.remove()
    if as_json:
        echo_json([_as_json(item) for item in found])
    elif found:
        click.echo(table(_COLUMNS, [[item.owner, *thing] for item in found for thing in item.things]))
    for problem in (problem for item in found for problem in item.problems):
        click.echo(problem, err=True)
    return int(any(item.problems for item in found) if remove else bool(found))


def leftovers(config: Config, namespace: str | None = None) -> list[Leftover]:
    """All there are now, or those of sandboxes in a namespace. PermissionDenied for anybody but root."""
    found = []
    for run_dir in sandboxes.run_dirs():
        with _abandoned(run_dir, 0) as record:
            if record is not None and namespace in (None, record.namespace):
                owner = f"{record.namespace}/{record.sandbox_id}"
                found.append(Leftover(owner, left(record), lambda run_dir=run_dir: _remove(run_dir)))  # type: ignore[misc]
    store = Store(config.template_dir, config.template_limit_mib)
    if namespace is None and (half_made := store.left()):
        things = [("directory", str(path)) for path in half_made]
        found.append(Leftover("templates", things, lambda: _remove_half_made(store)))
    return found


@contextmanager
def _abandoned(run_dir: str, patience_s: float) -> Iterator[Record | None]:
    """The record of a sandbox that nobody looks after, which stays so inside; None for any other."""
    deadline = time.monotonic() + patience_s
    try:
        held = lock(run_dir, deadline, create=False)
    except DeadlineExceeded:
        held = None
    if held is None:
        yield None
        return
    try:
        record = Record.salvage(run_dir, address.load(run_dir))
        yield None if lives(record, deadline) else record
    finally:
        os.close(held)


def _remove(run_dir: str) -> list[str]:
    with _abandoned(run_dir, _REMOVE_S) as record:
        return teardown(record, time.monotonic() + _REMOVE_S) if record is not None else []


def _remove_half_made(store: Store) -> list[str]:
    store.left(remove=True)
    return [f"{path} stays" for path in store.left()]


def _as_json(item: Leftover) -> dict[str, object]:
    things = [{"what": what, "which": which} for what, which in item.things]
    return {"of": item.owner, "left": things, "problems": item.problems}
