"""Read a bundle: the container's spec and what its rootfs is made of."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shim import oci
from shim.errors import InvalidArgument, NotFound
from shim.rootfs.api import Mount

_TMPFS_MAGIC = 0x01021994  # <linux/magic.h>

# kubelet's and docker's resolv.conf are a few hundred bytes; a guest needs no more.
_MAX_RESOLV_CONF = 16384


def load(bundle: Path) -> dict[str, Any]:
    """The spec in the bundle's config.json. NotFound or InvalidArgument, naming the file."""
    path = bundle / "config.json"
    try:
        return oci.parse(path.read_bytes())
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}") from error


def rootfs_mounts(bundle: Path, spec: Mapping[str, Any], given: Sequence[Mount]) -> tuple[Mount, ...]:
    """The mounts that make the rootfs: those of the request, else the directory that the spec names
    (`ctr run --rootfs`)."""
    if given:
        return tuple(given)
    path = oci.text(oci.section(spec, "root"), "path")
    if not path:
        raise InvalidArgument(f"{bundle}: the spec names no root and the request has no rootfs mounts")
    return (Mount(type="bind", source=str(bundle / path), options=("rbind", "rw")),)


def join_pod(spec: dict[str, Any], pod: Mapping[str, Any]) -> None:
    """Give a container's spec what it would have of its pod's pause container, if there were one: kernel
    parameters, and mounts where it has none. A /dev/shm of its own gives way when it joins another's IPC
    namespace, of which that memory is a part."""
    own, linux = oci.objects(spec, "mounts"), oci.section(spec, "linux")
    ids = {key: linux[key] for key in ("uidMappings", "gidMappings") if linux.get(key)}
    if oci.namespace_path(spec, "ipc"):
        own = [mount for mount in own if mount.get("destination") != "/dev/shm" or oci.is_bind(mount)]
    taken = {mount.get("destination") for mount in own}
    spec["mounts"] = own + [
        {**mount, **ids} for mount in oci.objects(pod, "mounts") if mount["destination"] not in taken
    ]
    parameters = {**oci.section(pod, "linux", "sysctl"), **oci.section(linux, "sysctl")}
    spec["linux"] = {**linux, "sysctl": parameters}


def resolv_conf(spec: Mapping[str, Any]) -> list[str]:
    """The lines of the file that the spec mounts as /etc/resolv.conf; none if there is no such mount or
    file."""
    for mount in oci.objects(spec, "mounts"):
        if mount.get("destination") == "/etc/resolv.conf" and oci.is_bind(mount):
            try:
                with open(oci.text(mount, "source"), encoding="utf-8", errors="replace") as file:
                    return file.read(_MAX_RESOLV_CONF).splitlines()
            except OSError:
                return []  # the bind of the same file fails with the better message
    return []


def shm_bytes(spec: Mapping[str, Any]) -> int | None:
    """The size of the tmpfs that the spec binds as /dev/shm; None if there is no such mount."""
    for mount in oci.objects(spec, "mounts"):
        if mount.get("destination") == "/dev/shm" and oci.is_bind(mount):
            return tmpfs_bytes(Path(oci.text(mount, "source")))
    return None


def tmpfs_bytes(path: Path) -> int | None:
    """How large the tmpfs may grow that is mounted at `path`; None if there is no directory, or something else."""
    if not path.is_dir() or not os.path.ismount(path) or _filesystem(path) != _TMPFS_MAGIC:
        return None
    found = os.statvfs(path)
    return found.f_blocks * found.f_frsize


def _filesystem(path: Path) -> int:
    """statfs(2)'s f_type, which os.statvfs leaves out."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs begins with it, a long
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer):
        return 0
    return ctypes.c_long.from_buffer(buffer).value
