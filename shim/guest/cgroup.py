"""A container's cgroup (v2): where it is, and what the agent does to all of it at once.

crun makes and removes the cgroup; the agent names it, freezes and kills it and watches it for the OOM killer.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

from shim import errors
from shim.guest import syscall

ROOT = "/sys/fs/cgroup"
# ENODEV: the cgroup was removed between open and use.
_GONE = (errno.ENOENT, errno.ENODEV)
# A process that waits for a disk cannot be frozen before it has it.
_FREEZE_S = 5.0


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


def set_limit(path: str, name: str, value: str) -> None:
    """Write one of the kernel's files; InvalidArgument says what it does not take."""
    if "/" in name or "." not in name.strip("."):
        raise errors.InvalidArgument(f"resources.unified: {name!r} is no file of a cgroup")
    try:
        syscall.set_value(f"{ROOT}{path}/{name}", value)
    except OSError as error:
        raise errors.InvalidArgument(f"{name}: cannot be set to {value!r}: {error.strerror}") from error


def _write(path: str, name: str, value: str) -> None:
    try:
        with open(f"{ROOT}{path}/{name}", "w") as file:
            file.write(value)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def processes(path: str) -> list[int]:
    """The pids of all processes below, none when the cgroup is gone."""
    found = []
    for directory, _, _ in os.walk(f"{ROOT}{path}"):
        try:
            with open(f"{directory}/cgroup.procs") as file:
                found += [int(line) for line in file]
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return found


async def freeze(path: str) -> None:
    """Stop every process below; returns when they stand still. DeadlineExceeded when some do not: then all go
    on, as when the caller gives up."""
    frozen = asyncio.Event()

    def look() -> None:
        if events(path, "cgroup.events").get("frozen"):
            frozen.set()

    watch = Watch(f"{path}/cgroup.events", look)
    try:
        _write(path, "cgroup.freeze", "1")
        look()
        await asyncio.wait_for(frozen.wait(), _FREEZE_S)
    except TimeoutError:
        thaw(path)
        raise errors.DeadlineExceeded(f"processes do not stand still within {_FREEZE_S:g} s") from None
    except BaseException:
        thaw(path)
        raise
    finally:
        watch.close()


def thaw(path: str) -> None:
    """Let every process below go on. No error when the cgroup is gone."""
    _write(path, "cgroup.freeze", "0")


def events(path: str, name: str) -> dict[str, int]:
    """The counters in a file of lines `name number`; none when it is not there."""
    try:
        with open(f"{ROOT}{path}/{name}") as file:
            return {key: int(value) for key, value in map(str.split, file)}
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return {}


class Watch:
    """Calls `on_change` on the loop after each change of a file. OSError when there is none."""

    def __init__(self, path: str, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._fd = syscall.inotify(f"{ROOT}{path}", syscall.IN_MODIFY)
        asyncio.get_running_loop().add_reader(self._fd, self._on_event)

    def _on_event(self) -> None:
        try:
            os.read(self._fd, 4096)
        except BlockingIOError:
            return
        self._on_change()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class OomWatch:
    """Calls `on_oom` once for each time the count of OOM kills was seen to rise."""

    def __init__(self, path: str, on_oom: Callable[[], None]) -> None:
        self._path, self._on_oom = path, on_oom
        self._seen = 0
        try:
            self._watch: Watch | None = Watch(f"{path}/memory.events", self.check)
        except OSError:
            self._watch = None  # no memory controller: nothing can be counted

    def check(self) -> None:
        """Look now; also called at each exit, so that the event comes before it."""
        count = events(self._path, "memory.events").get("oom_kill", 0)
        if count > self._seen:
            self._seen = count
            self._on_oom()

    def close(self) -> None:
        if self._watch is not None:
            self._watch.close()
