"""Disks in and out of a QEMU, by the commands that it gets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shim.errors import Internal, NotFound
from shim.hypervisor.api import Disk
from shim.hypervisor.qemu.disk import Disks
from shim.hypervisor.qemu.qmp import Event, QmpError


class Qemu:
    """Stands in for a `QmpClient`: notes commands, lets go of devices at once, fails where told to."""

    def __init__(self, disks: Disks, fail: str = "") -> None:
        self.disks, self.fail = disks, fail
        self.commands: list[str] = []
        self.arguments: dict[str, Any] = {}
        self.opened: list[os.stat_result] = []
        self.address: Any = None

    async def execute(self, command: str, arguments: Any = None, *, fds: Sequence[int] = ()) -> Any:
        self.commands.append(command)
        self.arguments[command] = arguments
        self.opened += [os.fstat(fd) for fd in fds]
        if command == self.fail:
            raise QmpError(f"QMP {command}: no")
        if command == "device_del":
            self.disks.on_event(Event("DEVICE_DELETED", {"path": "/machine/x"}))
            self.disks.on_event(Event("DEVICE_DELETED", {"device": arguments["id"], "path": "/machine/y"}))
        if command == "qom-get":
            slots = {"port0": 1 << 3, "bridge0": 0, "disk1": 0x1E << 3}
            return slots[arguments["path"].rsplit("/", 1)[1]] if self.address is None else self.address
        return {}


def disks(fail: str = "") -> tuple[Disks, Any]:
    made = Disks()
    return made, Qemu(made, fail)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(4096))
    return path


def test_a_disk_comes_and_goes(image: Path) -> None:
    async def scenario() -> None:
        plugs, qemu = disks()
        fds = len(os.listdir("/proc/self/fd"))
        assert await plugs.plug(qemu, Disk("disk1", image, read_only=True)) == "01/00/1e"
        assert qemu.commands[:3] == ["add-fd", "blockdev-add", "device_add"]
        assert [found.st_ino for found in qemu.opened] == [os.stat(image).st_ino]
        block = qemu.arguments["blockdev-add"]
        assert (block["driver"], block["read-only"]) == ("file", True)
        assert qemu.arguments["device_add"]["serial"] == "disk1"
        qemu.commands.clear()
        await plugs.unplug(qemu, "disk1")
        assert qemu.commands == ["device_del", "blockdev-del", "remove-fd"]
        assert qemu.arguments["remove-fd"] == qemu.arguments["add-fd"]
        with pytest.raises(NotFound, match="disk1"):
            await plugs.unplug(qemu, "disk1")
        assert len(os.listdir("/proc/self/fd")) == fds

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("fail", "undone"),
    [
        ("add-fd", []),
        ("blockdev-add", ["remove-fd"]),
        ("device_add", ["blockdev-del", "remove-fd"]),
    ],
)
def test_a_disk_that_is_refused_leaves_nothing(image: Path, fail: str, undone: list[str]) -> None:
    async def scenario() -> None:
        plugs, qemu = disks(fail)
        with pytest.raises(QmpError):
            await plugs.plug(qemu, Disk("disk1", image, read_only=False))
        assert qemu.commands[qemu.commands.index(fail) + 1 :] == undone

    asyncio.run(scenario())


def test_what_is_no_disk_is_refused_by_its_path(tmp_path: Path) -> None:
    async def scenario() -> None:
        plugs, qemu = disks()
        with pytest.raises(NotFound, match="/no/such/disk"):
            await plugs.plug(qemu, Disk("disk1", Path("/no/such/disk"), read_only=True))
        with pytest.raises(Internal, match="neither a block device nor a file"):
            await plugs.plug(qemu, Disk("disk1", Path("/dev/null"), read_only=True))
        assert qemu.commands == []

    asyncio.run(scenario())


def test_a_qemu_that_does_not_say_where_the_disk_is_is_not_believed(image: Path) -> None:
    async def scenario() -> None:
        plugs, qemu = disks()
        qemu.address = "nowhere"
        with pytest.raises(Internal, match="nowhere"):
            await plugs.plug(qemu, Disk("disk1", image, read_only=True))

    asyncio.run(scenario())
