"""Remove everything a record names, with its daemon dead."""

from __future__ import annotations

import os
import time

from shim.record import cgroup
from shim.record.place import prune
from shim.record.process import LOGGER
from shim.record.removal import mounts_below, remove_socket, remove_tree, unmount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from shim.record.record import Record

_FLUSH_S = 1.0


def teardown(record: Record, deadline: float) -> list[str]:
    """Remove what the record names and the runtime directory; what could not be removed, in words.

    Kills processes (but the calling one; loggers, whose input ends with that, get a second), then unmounts, then
    deletes. With problems the record stays, so
    that a later attempt knows what to do. `deadline` is on `time.monotonic`. Idempotent.
    """
    problems: list[str] = []

    def attempt(what: str, path: str, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            problems.append(f"{what} {path}: {error.strerror or error}")

    victims = [process for process in record.processes if process.pid != os.getpid()]
    loggers = [process for process in victims if process.role == LOGGER]
    for process in victims:
        if process not in loggers:
            process.kill()
    flushed = min(deadline, time.monotonic() + _FLUSH_S)
    for process in loggers:
        process.wait_gone(flushed)
        process.kill()
    for process in victims:
        if not process.wait_gone(deadline):
            problems.append(f"{process.role} (pid {process.pid}) was killed but does not end")
    for path in record.cgroups:
        attempt("remove cgroup", path, lambda path=path: cgroup.remove(path, deadline))  # type: ignore[misc]
    for redirection in record.redirections:
        attempt("restore the network of", redirection.netns, redirection.undo)
    for path in mounts_below(record.run_dir):
        attempt("unmount", path, lambda path=path: unmount(path))  # type: ignore[misc]
    if record.socket:
        attempt("remove socket", record.socket, lambda: remove_socket(record.socket))
    if not problems:
        attempt("remove", record.run_dir, lambda: remove_run_dir(record.run_dir, deadline))
    return problems


def left(record: Record) -> list[tuple[str, str]]:
    """What `teardown` would find to remove: of what kind, and which."""
    alive = [process for process in record.processes if process.pid != os.getpid() and process.alive()]
    found = [("process", f"{process.pid} {process.role}") for process in alive]
    found += [("mount", path) for path in mounts_below(record.run_dir)]
    found += [("network", f"{', '.join(r.links)} in {r.netns}") for r in record.redirections if r.exists()]
    for kind, paths in (("cgroup", record.cgroups), ("socket", [record.socket])):
        found += [(kind, path) for path in paths if os.path.lexists(path)]
    return [*found, ("directory", record.run_dir)]


def remove_run_dir(run_dir: str, deadline: float) -> None:
    """Delete a runtime directory, the last act of a sandbox, and the directories above it that are empty now.
    Raises OSError; what lies behind a mount is never touched."""
    remove_tree(run_dir, deadline)
    prune(run_dir)
