"""Disks in the guest: found by where they are plugged in, and put into containers under the paths they ask for.

The runtime names a disk by its PCI path, Kata's form: two hexadecimal digits for the slot of each bridge from the root
bus on and of the device ("01/00/03"), each with a function other than 0 behind a dot.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Mapping, Sequence

from shim import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROOT = "/sys/devices/pci0000:00"
# A plugged-in disk appears a moment after the request that names it.
_DEVICE_S = 5.0
_LOOK_S = 0.01

_SLOT = re.compile(r"[01][0-9a-f](\.[0-7])?")


async def find_disk(source: str, root: str = ROOT, timeout_s: float = _DEVICE_S, *, dev: str = "/dev") -> str:
    """The node below /dev of the disk with this PCI path (or of that name already); waits for it, and until it can be
    opened. InvalidArgument for what is no such path, NotFound when no disk comes."""
    if source.startswith("/dev/") and ".." not in source.split("/"):
        return source
    slots = source.split("/")
    if not all(_SLOT.fullmatch(slot) for slot in slots):
        raise errors.InvalidArgument(f"{source!r} is no PCI path of a disk")
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while (name := _disk_at(root, slots)) is None or not _opens(f"{dev}/{name}"):
        if loop.time() > until:
            raise errors.NotFound(f"no disk at PCI path {source}")
        await asyncio.sleep(_LOOK_S)
    return f"{dev}/{name}"


def _disk_at(directory: str, slots: Sequence[str]) -> str | None:
    """The kernel's name of the disk, once it and its node are there."""
    for place in slots:
        slot, _, function = place.partition(".")
        wanted = f":{slot}.{function or 0}"
        found = [name for name in _entries(directory) if name.count(":") == 2 and name.endswith(wanted)]
        if not found:
            return None
        directory = f"{directory}/{found[0]}"
    for driver in _entries(directory):
        if driver.startswith("virtio"):
            for name in _entries(f"{directory}/{driver}/block"):
                return name
    return None


def _opens(node: str) -> bool:
    """The kernel shows a disk and its node some time before it can be opened (block/genhd.c, device_add_disk)."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError as error:
        if error.errno not in (errno.ENXIO, errno.ENOENT):
            raise errors.Internal(f"disk {node}: {error.strerror}") from error
        return False
    return True


def _entries(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


async def put_into(spec: dict[str, Any], devices: Sequence[Mapping[str, Any]]) -> None:
    """Give the spec's devices the numbers that they have in the guest: agent.proto `Device`s of type "blk" name each
    by its path in the container."""
    for device in devices:
        path = device.get("container_path", "")
        if device.get("type") != "blk":
            raise errors.InvalidArgument(f"device {path}: no device driver {device.get('type')!r}")
        entry = next((item for item in spec["linux"].get("devices", []) if item.get("path") == path), None)
        if entry is None:
            raise errors.InvalidArgument(f"device {path}: the spec has none with this path")
        number = os.stat(await find_disk(device.get("id") or device.get("vm_path", ""))).st_rdev
        entry.update(type="b", major=os.major(number), minor=os.minor(number))
