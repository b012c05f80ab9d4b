"""Block disks plugged into a running QEMU and out of it: virtio-blk on a file or device that we have opened.

    plug     add-fd (+ the file), blockdev-add on the fd set, device_add, and where the device has got its place
    unplug   device_del, the guest lets go: DEVICE_DELETED, blockdev-del, remove-fd

QEMU may live where the device's name is not to be found, and needs no right to open it. Source: qapi/block-core.json,
qapi/qdev.json.
"""

from __future__ import annotations

import asyncio
import os
import stat
from contextlib import AsyncExitStack

from shim.errors import DeadlineExceeded, Internal, NotFound
from shim.hypervisor.api import Disk
from shim.hypervisor.qemu import cmdline
from shim.hypervisor.qemu.qmp import Event, QmpClient

# A guest that runs lets go of a device in a tenth of a second.
_UNPLUG_S = 5.0
# The console has the first of QEMU's fd sets.
_FIRST_FD_SET = 16


class Disks:
    """All of one QEMU. `on_event` is to get all of its events."""

    def __init__(self) -> None:
        self._fd_sets: dict[str, int] = {}
        self._last_fd_set = _FIRST_FD_SET
        self._deleted: dict[str, asyncio.Event] = {}

    def on_event(self, event: Event) -> None:
        waiting = self._deleted.get(str(event.data.get("device")))
        if event.name == "DEVICE_DELETED" and waiting is not None:
            waiting.set()

    async def plug(self, qmp: QmpClient, disk: Disk) -> str:
        """The disk's PCI path, see `Hypervisor.add_disk`."""
        self._last_fd_set += 1
        fd_set = self._last_fd_set
        async with AsyncExitStack() as undo:
            fd, driver = _open(disk)
            try:
                await qmp.execute("add-fd", {"fdset-id": fd_set}, fds=(fd,))
            finally:
                os.close(fd)
            undo.push_async_callback(qmp.execute, "remove-fd", {"fdset-id": fd_set})
            node = {"node-name": disk.id, "driver": driver, "filename": f"/dev/fdset/{fd_set}"}
            # Several VMs may share a device, as containers on one host may.
            options = {"read-only": disk.read_only, "locking": "off", "discard": "unmap"}
            await qmp.execute("blockdev-add", {**node, **options})
            undo.push_async_callback(qmp.execute, "blockdev-del", {"node-name": disk.id})
            device = {"driver": "virtio-blk-pci", "id": disk.id, "drive": disk.id, "serial": disk.id}
            place = {"bus": cmdline.HOTPLUG_BUS, "disable-legacy": "on"}
            await qmp.execute("device_add", {**device, **place})
            self._fd_sets[disk.id] = fd_set
            undo.pop_all()
        slots = [await _slot(qmp, name) for name in (cmdline.ROOT_PORT, cmdline.HOTPLUG_BUS, disk.id)]
        return "/".join(slots)

    async def unplug(self, qmp: QmpClient, disk_id: str) -> None:
        if disk_id not in self._fd_sets:
            raise NotFound(f"the VM has no disk {disk_id}")
        deleted = self._deleted[disk_id] = asyncio.Event()
        try:
            await qmp.execute("device_del", {"id": disk_id})
            async with asyncio.timeout(_UNPLUG_S):
                await deleted.wait()
        except TimeoutError as error:
            raise DeadlineExceeded(f"the guest does not let go of disk {disk_id}") from error
        finally:
            del self._deleted[disk_id]
        await qmp.execute("blockdev-del", {"node-name": disk_id})
        await qmp.execute("remove-fd", {"fdset-id": self._fd_sets.pop(disk_id)})


def _open(disk: Disk) -> tuple[int, str]:
    """A descriptor of the file or device, and QEMU's driver for its kind."""
    access = os.O_RDONLY if disk.read_only else os.O_RDWR
    try:
        fd = os.open(disk.path, access | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise NotFound(f"disk {disk.path}: {error.strerror}") from error
    except OSError as error:
        raise Internal(f"disk {disk.path}: {error.strerror}") from error
    mode = os.fstat(fd).st_mode
    if stat.S_ISBLK(mode) or stat.S_ISREG(mode):
        return fd, "host_device" if stat.S_ISBLK(mode) else "file"
    os.close(fd)
    raise Internal(f"disk {disk.path}: neither a block device nor a file")


async def _slot(qmp: QmpClient, device_id: str) -> str:
    """Two hexadecimal digits: the device's number on its bus."""
    # As a number: the slot, and three bits of function.
    address = await qmp.execute("qom-get", {"path": f"/machine/peripheral/{device_id}", "property": "addr"})
    if not isinstance(address, int):
        raise Internal(f"QEMU says {address!r} of where {device_id} is")
    return f"{address >> 3:02x}"
