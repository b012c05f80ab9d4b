"""A container's cgroup (v2): where it is, and what the agent does to all of it at once.

crun makes and removes the cgroup; the agent only names it, kills it and watches it for the OOM killer.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

from shim import errors
from shim.guest import syscall

ROOT = "/sys/fs/cgroup"


def normalise(cgroups_path: str, container_id: str) -> str:
    """The path below the cgroup mount for a spec's `cgroupsPath`; always starts with "/", never is "/".

    A path for the systemd driver, "slice:prefix:name", becomes /slice/prefix-name; none at all
    /kata/<container id>.
    """
    if cgroups_path.count(":") == 2:
        parent, prefix, name = cgroups_path.split(":")
        cgroups_path = f"{parent}/{prefix}-{name}"
    parts = [part for part in cgroups_path.split("/") if part not in ("", ".")]
    if any(part == ".." or "\0" in part for part in parts):
        raise errors.InvalidArgument(f"cgroupsPath {cgroups_path!r} is not a plain path")
    return "/" + "/".join(parts or ["kata", container_id])


def overlaps(one: str, other: str) -> bool:
    """Whether killing one would kill in the other."""
    return (one + "/").startswith(other + "/") or (other + "/").startswith(one + "/")


def kill(path: str) -> None:
    """SIGKILL to every process below. No error when the cgroup is gone."""
    _write(path, "cgroup.kill", "1")


def _write(path: str, name: str, value: str) -> None:
    try:
        with open(f"{ROOT}{path}/{name}", "w") as file:
            file.write(value)
    except OSError as error:
        # ENODEV: the cgroup was removed between open and write.
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def oom_kills(path: str) -> int:
    """How many processes the OOM killer has ended in this cgroup; 0 when it is gone."""
    try:
        with open(f"{ROOT}{path}/memory.events") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    except OSError:
        pass
    return 0


class OomWatch:
    """Calls `on_oom` once for each time the count of OOM kills was seen to rise."""

    def __init__(self, path: str, on_oom: Callable[[], None]) -> None:
        self._path, self._on_oom = path, on_oom
        self._seen = 0
        try:
            self._fd = syscall.inotify(f"{ROOT}{path}/memory.events", syscall.IN_MODIFY)
        except OSError:
            self._fd = -1  # no memory controller: nothing can be counted
            return
        asyncio.get_running_loop().add_reader(self._fd, self._on_event)

    def _on_event(self) -> None:
        try:
            os.read(self._fd, 4096)
        except BlockingIOError:
            return
        self.check()

    def check(self) -> None:
        """Look now; also called at the exit, so that the event comes before it."""
        count = oom_kills(self._path)
        if count > self._seen:
            self._seen = count
            self._on_oom()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
