"""Storages: mounts the runtime asks for before a container, or for the whole sandbox.

Drivers: virtio-fs, overlayfs, bind (and watchable-bind, as a plain bind), ephemeral (tmpfs, hugetlbfs),
local (a directory), blk (a disk). Storages are counted by mount point, for containers may name the same one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence

from shim import errors
from shim.guest import boot, syscall
from shim.guest.devices import find_disk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# A hot-plugged device appears a moment after the request that names it.
_DEVICE_S = 5.0

_SET = {
    "ro": syscall.MS_RDONLY,
    "nosuid": syscall.MS_NOSUID,
    "nodev": syscall.MS_NODEV,
    "noexec": syscall.MS_NOEXEC,
    "sync": syscall.MS_SYNCHRONOUS,
    "remount": syscall.MS_REMOUNT,
    "mand": syscall.MS_MANDLOCK,
    "dirsync": syscall.MS_DIRSYNC,
    "noatime": syscall.MS_NOATIME,
    "nodiratime": syscall.MS_NODIRATIME,
    "bind": syscall.MS_BIND,
    "rbind": syscall.MS_BIND | syscall.MS_REC,
    "relatime": syscall.MS_RELATIME,
    "strictatime": syscall.MS_STRICTATIME,
    "lazytime": syscall.MS_LAZYTIME,
}
_CLEAR = {
    "rw": syscall.MS_RDONLY,
    "suid": syscall.MS_NOSUID,
    "dev": syscall.MS_NODEV,
    "exec": syscall.MS_NOEXEC,
    "async": syscall.MS_SYNCHRONOUS,
    "atime": syscall.MS_NOATIME,
    "diratime": syscall.MS_NODIRATIME,
    "norelatime": syscall.MS_RELATIME,
    "defaults": 0,
}
_PROPAGATION = {
    "shared": syscall.MS_SHARED,
    "rshared": syscall.MS_SHARED | syscall.MS_REC,
    "slave": syscall.MS_SLAVE,
    "rslave": syscall.MS_SLAVE | syscall.MS_REC,
    "private": syscall.MS_PRIVATE,
    "rprivate": syscall.MS_PRIVATE | syscall.MS_REC,
}


def parse_options(options: Sequence[str]) -> tuple[int, list[int], str]:
    """fstab options as (mount(2) flags, propagation flags to set afterwards, the file system's own data)."""
    flags, propagation, data = 0, [], []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option:
            data.append(option)
    return flags, propagation, ",".join(data)


def check_path(path: str, what: str) -> str:
    """An absolute path without "..", normalised; anything else is InvalidArgument."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise errors.InvalidArgument(f"{what} {path!r} is not a plain absolute path")
    return os.path.normpath(path)


def _mount(source: str, target: str, fstype: str, options: Sequence[str]) -> None:
    flags, propagation, data = parse_options(options)
    syscall.mount(source, target, fstype, flags, data)
    extra = flags & ~(syscall.MS_BIND | syscall.MS_REC)
    if flags & syscall.MS_BIND and extra:
        # mount(2) ignores all other flags when it binds.
        syscall.mount("", target, "", syscall.MS_REMOUNT | syscall.MS_BIND | extra)
    for flag in propagation:
        syscall.mount("", target, "", flag)


class Storages:
    """The storages of the sandbox. Methods raise `errors.ShimError` that names the mount point."""

    def __init__(self, mount: Callable[[str, str, str, Sequence[str]], None] = _mount) -> None:
        self._mount = mount
        self._users: dict[str, int] = {}
        self._made_directories: set[str] = set()

    async def add(self, storages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Make agent.proto `Storage`s in order; their mount points. On failure none of them stays."""
        points: list[str] = []
        try:
            for storage in storages:
                points.append(await self._add(storage))
        except BaseException:
            self.remove(points)
            raise
        return points

    async def _add(self, storage: Mapping[str, Any]) -> str:
        point = check_path(storage.get("mount_point", ""), "mount point")
        driver, source = storage.get("driver", ""), storage.get("source", "")
        if driver == "blk":
            # Before the look at who has it: another container may come meanwhile.
            source = await find_disk(source)
        if self._users.get(point, 0):
            self._users[point] += 1
            return point
        try:
            match driver:
                case "virtio-fs":
                    await self._virtio_fs(storage, point)
                case "blk":
                    boot.load_file_system(storage.get("fstype", ""))
                    self._make(storage, point, source, storage.get("fstype", ""))
                case "overlayfs":
                    self._overlay(storage, point)
                case "bind" | "watchable-bind":
                    self._bind(storage, point)
                case "ephemeral":
                    self._ephemeral(storage, point)
                case "local":
                    self._local(storage, point)
                case _:
                    raise errors.InvalidArgument(f"no storage driver {driver!r}")
        except OSError as error:
            raise errors.Internal(f"mount {driver} on {point}: {error.strerror or error}") from error
        # A shared storage stays for the sandbox's other containers.
        self._users[point] = 2 if storage.get("shared") else 1
        return point

    def _make(self, storage: Mapping[str, Any], point: str, source: str, fstype: str) -> None:
        os.makedirs(point, exist_ok=True)
        self._mount(source, point, fstype, storage.get("options", []))

    def _overlay(self, storage: Mapping[str, Any], point: str) -> None:
        """The writable layer's two directories are made if they are not there."""
        for option in storage.get("options", []):
            key, _, path = option.partition("=")
            if key in ("upperdir", "workdir"):
                os.makedirs(check_path(path, key), exist_ok=True)
        self._make(storage, point, storage.get("source") or "overlay", "overlay")

    async def _virtio_fs(self, storage: Mapping[str, Any], point: str) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + _DEVICE_S
        while True:
            try:
                self._make(storage, point, storage.get("source", ""), "virtiofs")
                return
            except OSError as error:
                # EINVAL: no device with this tag, or not yet.
                if error.errno != errno.EINVAL or loop.time() > until:
                    raise
            await asyncio.sleep(0.02)

    def _bind(self, storage: Mapping[str, Any], point: str) -> None:
        source = check_path(storage.get("source", ""), "bind source")
        if os.path.isdir(source):
            os.makedirs(point, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(point), exist_ok=True)
            os.close(os.open(point, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        options = list(storage.get("options", []))
        if not {"bind", "rbind"} & set(options):
            options.append("rbind")
        self._mount(source, point, "", options)

    def _ephemeral(self, storage: Mapping[str, Any], point: str) -> None:
        options, group = _without_fsgid(storage)
        fstype = storage.get("fstype") or "tmpfs"
        os.makedirs(point, exist_ok=True)
        self._mount(storage.get("source") or fstype, point, fstype, options)
        if group is not None:
            os.chown(point, -1, group)
            os.chmod(point, 0o2775)

    def _local(self, storage: Mapping[str, Any], point: str) -> None:
        options, group = _without_fsgid(storage)
        if os.path.realpath(point) != point:  # by a link of a container's
            raise errors.InvalidArgument(f"local storage {point}: leads elsewhere")
        self._made_directories.add(point)
        if os.path.exists(point):  # a container's: it stays as it is
            return
        os.makedirs(point)
        for option in options:
            if option.startswith("mode="):
                os.chmod(point, int(option[5:], 8) & 0o7777)
        if group is not None:
            os.chown(point, -1, group)

    def remove(self, points: Sequence[str]) -> None:
        """One user less for each; the last one unmounts. Busy mounts are detached."""
        for point in reversed(points):
            users = self._users.get(point, 0) - 1
            if users > 0:
                self._users[point] = users
                continue
            self._users.pop(point, None)
            if point in self._made_directories:
                self._made_directories.discard(point)
                continue
            with contextlib.suppress(OSError):  # not mounted any more
                syscall.unmount(point, syscall.MNT_DETACH)


def _without_fsgid(storage: Mapping[str, Any]) -> tuple[list[str], int | None]:
    """Options without the agent's own `fsgid=<gid>`, and that gid."""
    options, group = [], None
    for option in storage.get("options", []):
        key, _, value = option.partition("=")
        if key != "fsgid":
            options.append(option)
        elif value.isdecimal():
            group = int(value)
        else:
            raise errors.InvalidArgument(f"storage option {option!r}: not a group id")
    wanted = storage.get("fs_group", {}).get("group_id")
    return options, wanted if wanted else group
