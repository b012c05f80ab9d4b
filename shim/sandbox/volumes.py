"""What of the host's files and disks a container sees: each mount and device of its spec brought into the guest.

bind of files             shared, and mounted in the guest from the share
bind below /proc, /sys    the guest's own, as a character device below /dev is
bind at /dev/shm          the sandbox's /dev/shm, a tmpfs in the guest
emptyDir in memory        a tmpfs in the guest that stays as long as the sandbox
block device, however     a disk of the VM under the path that the spec wants
rootfs on a block device  a disk too, mounted in the guest

A source is looked at in a thread: its file system may be one that does not answer.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shim import oci
from shim.agent.api import Device, Storage
from shim.errors import InvalidArgument, NotFound, Unimplemented
from shim.log import Log
from shim.rootfs.api import Mount, RootfsShare
from shim.sandbox.disks import Disks
from shim.sandbox.memory_volumes import memory_volume
from shim.value import Value

# Where the agent mounts the share (Kata: runtime-rs, share_virtio_fs.rs); the share's guest paths are below it.
SHARED_DIR = "/run/kata-containers/shared/containers/"
SANDBOX_SHM = "/run/kata-containers/sandbox/shm"
_DISK_ROOTS = "/run/kata-containers/sandbox/rootfs"
_GUEST_TREES = ("/proc", "/sys")
_SHARED = {"shared", "rshared"}
_FOLLOWING = {"slave", "rslave", *_SHARED}


class Volumes(Value):
    """In the guest: the path of the rootfs, the spec's mounts and devices, and what the agent has to make of them
    first."""

    root: str
    mounts: list[dict[str, Any]]
    devices: list[dict[str, Any]]
    storages: list[Storage]
    agent_devices: list[Device]


class VolumeMaker:
    """For one container. On an error, and when the container is gone, the caller calls `remove`."""

    def __init__(self, share: RootfsShare, disks: Disks, container_id: str, log: Log) -> None:
        self._share, self._disks, self._id, self._log = share, disks, container_id, log

    async def make(self, bundle: Path, spec: Mapping[str, Any], rootfs: Sequence[Mount]) -> Volumes:
        """`rootfs` are the mounts that make the root. NotFound names a source that is missing."""
        made = Volumes("", [], oci.objects(spec, "linux", "devices").copy(), [], [])
        root = await self._root(rootfs, made)
        for mount in oci.objects(spec, "mounts"):
            await self._mount(bundle, mount, spec, made)
        for device in oci.objects(spec, "linux", "devices"):
            if device.get("type") == "b":
                await self._device(device, spec, made)
        return Volumes(root, made.mounts, made.devices, made.storages, made.agent_devices)

    async def remove(self) -> None:
        await self._share.remove(self._id)
        await self._disks.remove(self._id)

    async def _root(self, rootfs: Sequence[Mount], made: Volumes) -> str:
        image = rootfs[0]
        alone = len(rootfs) == 1 and "bind" not in image.type
        kind = await asyncio.to_thread(_kind, image.source) if alone else 0
        if not stat.S_ISBLK(kind) and not (stat.S_ISREG(kind) and "loop" in image.options):
            return await self._share.mount_rootfs(self._id, rootfs)
        if any(option.startswith(("uidmap=", "gidmap=")) for option in image.options):
            raise Unimplemented(f"rootfs {image.source}: ids cannot be mapped on a disk")
        read_only = "ro" in image.options
        pci_path = await self._disks.plug(self._id, Path(image.source), read_only=read_only)
        options = tuple(option for option in image.options if option != "loop")
        point = f"{_DISK_ROOTS}/{self._id}"
        made.storages.append(Storage("blk", pci_path, image.type, point, options))
        return point

    async def _mount(
        self, bundle: Path, mount: Mapping[str, Any], spec: Mapping[str, Any], made: Volumes
    ) -> None:
        source, options = oci.text(mount, "source"), oci.texts(mount, "options")
        mount, ids = _without_ids(mount, spec)
        if not oci.is_bind(mount) or _is_of(source, _GUEST_TREES):
            made.mounts.append(_unmapped(mount, ids))
            return
        path = bundle / source
        kind, read_only = await asyncio.to_thread(_kind, path), bool({"ro", "rro"} & set(options))
        if (in_memory := await asyncio.to_thread(memory_volume, path, ids=ids)) is not None:
            storages, point = in_memory
            made.storages.extend(storage for storage in storages if storage not in made.storages)
            made.mounts.append({**mount, "source": point})
        elif oci.text(mount, "destination") == "/dev/shm":
            made.mounts.append({**mount, "source": SANDBOX_SHM})
        elif stat.S_ISBLK(kind):
            await self._bound_device(path, _unmapped(mount, ids), made, read_only=read_only)
        elif _is_of(source, ("/dev",)) and not _is_file_below_dev(source, kind):
            made.mounts.append(_unmapped(mount, ids))
        else:
            if _SHARED & set(options):
                self._log.warning("what the container mounts there stays in the guest", mount=source)
            follow = bool(_FOLLOWING & set(options))
            shared = await self._share.bind(self._id, path, read_only=read_only, follow=follow, ids=ids)
            made.mounts.append({**mount, "source": shared})

    async def _bound_device(
        self, path: Path, mount: Mapping[str, Any], made: Volumes, *, read_only: bool
    ) -> None:
        """A block device that is mounted as a file becomes a device of the container."""
        found, destination = os.stat(path), oci.text(mount, "destination")
        number = {"major": os.major(found.st_rdev), "minor": os.minor(found.st_rdev)}
        owner = {"fileMode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
        made.devices.append({"path": destination, "type": "b", **number, **owner})
        pci_path = await self._disks.plug(self._id, path, read_only=read_only)
        made.agent_devices.append(Device("blk", pci_path, destination))

    async def _device(self, device: Mapping[str, Any], spec: Mapping[str, Any], made: Volumes) -> None:
        path, major, minor = oci.text(device, "path"), device.get("major"), device.get("minor")
        if not isinstance(major, int) or not isinstance(minor, int):
            raise InvalidArgument(f"spec: linux.devices: {path}: no device number")
        read_only = not _may_write(spec, major, minor)
        pci_path = await self._disks.plug(self._id, _block_node(major, minor, path), read_only=read_only)
        made.agent_devices.append(Device("blk", pci_path, path))


def sandbox_storages(tag: str, shm_bytes: int) -> tuple[Storage, Storage]:
    """What all containers of the sandbox use: the share and their /dev/shm."""
    options = ("noexec", "nosuid", "nodev", "mode=1777", f"size={shm_bytes}")
    return (
        Storage("virtio-fs", tag, "virtiofs", SHARED_DIR, ("nodev",)),
        Storage("ephemeral", "shm", "tmpfs", SANDBOX_SHM, options),
    )


def _block_node(major: int, minor: int, path: str) -> Path:
    """The host's node of a block device that the container is to have at `path`."""
    name = Path("/sys/dev/block", f"{major}:{minor}")
    if not name.exists():
        raise NotFound(f"block device {major}:{minor} for {path}: the host has no such device")
    # The kernel's name for it; udev's links need not be there.
    return Path("/dev", name.resolve().name.replace("!", "/"))


def _without_ids(
    mount: Mapping[str, Any], spec: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, str] | None]:
    """A mount without its mapping of ids, which is done on the host, and the mapping."""
    options, ids = oci.texts(mount, "options"), oci.id_maps(mount)
    if "ridmap" in options:
        raise Unimplemented(f"spec: mounts: {mount.get('destination')}: ridmap")
    if "idmap" in options:
        ids = ids or oci.id_maps(oci.section(spec, "linux"))
    bare = {key: value for key, value in mount.items() if key not in ("uidMappings", "gidMappings")}
    if "options" in bare:
        bare["options"] = [option for option in options if option != "idmap"]
    return bare, ids


def _unmapped(mount: dict[str, Any], ids: tuple[str, str] | None) -> dict[str, Any]:
    """The mount, for which there may be no `ids`, as it is the guest's own."""
    if ids is not None:
        raise Unimplemented(f"spec: mounts: {mount.get('destination')}: its ids cannot be mapped")
    return mount


def _kind(path: Path | str) -> int:
    """The file's mode; 0 if it is not there, which the share says best."""
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _is_of(source: str, trees: Sequence[str]) -> bool:
    return any(source == tree or source.startswith(tree + "/") for tree in trees)


def _is_file_below_dev(source: str, kind: int) -> bool:
    """Whether it is data of the host's and no part of what devtmpfs and devpts show."""
    return stat.S_ISREG(kind) or _is_of(source, ("/dev/shm",))


def _may_write(spec: Mapping[str, Any], major: int, minor: int) -> bool:
    """By the rule for exactly this device; without one, yes."""
    for rule in oci.objects(spec, "linux", "resources", "devices"):
        if (rule.get("type"), rule.get("major"), rule.get("minor")) == ("b", major, minor):
            return "w" in oci.text(rule, "access")
    return True
