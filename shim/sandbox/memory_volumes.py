"""Kubernetes' emptyDir with `medium: Memory`: kubelet makes a tmpfs on the host, and one in the guest stands for it.

    <kubelet>/pods/<uid>/volumes/kubernetes.io~empty-dir/<volume>         the tmpfs
    <kubelet>/pods/<uid>/volume-subpaths/<volume>/<container>/<number>    for a subPath: a bind of what is there in it

What containers put there is on no host's file system: a subPath is what the guest has under this path, or else a new
directory.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from shim import oci
from shim.agent.api import Storage
from shim.sandbox.bundle import tmpfs_bytes

_MEMORY_VOLUMES = "/run/kata-containers/sandbox/ephemeral"
_PLUGIN = "kubernetes.io~empty-dir"
_SUB_PATHS = "volume-subpaths"
_MOUNTS = "/proc/self/mountinfo"
_NOBODY = 65534  # whom the kernel shows for an id without a mapping


def memory_volume(
    source: Path, mounts: str = _MOUNTS, *, ids: tuple[str, str] | None = None
) -> tuple[list[Storage], str] | None:
    """What the agent has to make for it, and its path in the guest; None if `source` is nothing of such a volume.
    Its owners are mapped by `ids` (`oci.id_maps`), as a mount of the host's directory would show them."""
    if source.parent.name == _PLUGIN:
        storage = _tmpfs(source, ids)
        return ([storage], storage.mount_point) if storage else None
    if len(source.parts) < 5 or source.parts[-4] != _SUB_PATHS or tmpfs_bytes(source) is None:
        return None
    volume = source.parents[3] / "volumes" / _PLUGIN / source.parts[-3]
    storage, inside = _tmpfs(volume, ids), _path_inside(source, mounts)
    if storage is None or not inside or (found := os.stat(source)).st_dev != os.stat(volume).st_dev:
        return None
    # kubelet gives the directory the mode and the group of the volume.
    options = (f"mode={stat.S_IMODE(found.st_mode):o}", f"fsgid={_owner(found, ids)[1]}")
    point = storage.mount_point + inside
    return [storage, Storage("local", "local", "local", point, options)], point


def _tmpfs(volume: Path, ids: tuple[str, str] | None) -> Storage | None:
    size = tmpfs_bytes(volume)
    if size is None:
        return None
    found = os.stat(volume)
    mode = f"mode={stat.S_IMODE(found.st_mode):o}"
    # With its pod's id: the names of volumes are a pod's own, but the directory is the guest's.
    pod = volume.parts[-4] if len(volume.parts) > 4 else "pod"
    uid, gid = _owner(found, ids)
    options = (f"size={size}", mode, f"uid={uid}", f"gid={gid}")
    return Storage(
        "ephemeral", "tmpfs", "tmpfs", f"{_MEMORY_VOLUMES}/{pod}/{volume.name}", options, shared=True
    )


def _owner(found: os.stat_result, ids: tuple[str, str] | None) -> tuple[int, int]:
    if ids is None:
        return found.st_uid, found.st_gid
    uid, gid = oci.mapped_id(found.st_uid, ids[0]), oci.mapped_id(found.st_gid, ids[1])
    return _NOBODY if uid is None else uid, _NOBODY if gid is None else gid


def _path_inside(point: Path, mounts: str) -> str:
    """Which directory of its file system is mounted at `point`, as in "/a/b"; "" for the root, or without a mount."""
    inside = ""
    with open(mounts, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            # proc(5): the fourth field is the directory, the fifth where it is; some characters are octal numbers
            _, _, _, directory, place, *_ = (_unescaped(word) for word in line.split(" "))
            if place == str(point):
                inside = directory
    return inside.rstrip("/")


def _unescaped(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)
