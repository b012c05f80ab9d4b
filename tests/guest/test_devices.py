"""Disks by their PCI path."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from shim.errors import InvalidArgument, NotFound
from shim.guest import devices


def add_disk(root: Path, name: str = "vda") -> None:
    """What sysfs shows of a disk in slot 3 of the bridge behind the root port in slot 2, and its node."""
    (root / "dev").mkdir(exist_ok=True)
    (root / "dev" / name).touch()
    (root / "0000:00:02.0/0000:01:00.0/0000:02:03.0/virtio4/block" / name).mkdir(parents=True)
    (root / "0000:00:02.0/0000:01:00.0/0000:02:04.0/virtio5/net/eth0").mkdir(parents=True)
    (root / "0000:00:02.0/pci_bus").mkdir()


def test_a_disk_is_found_by_its_place(tmp_path: Path) -> None:
    add_disk(tmp_path)
    assert (
        asyncio.run(devices.find_disk("02/00/03", str(tmp_path), dev=f"{tmp_path}/dev"))
        == f"{tmp_path}/dev/vda"
    )
    assert asyncio.run(devices.find_disk("/dev/vdz")) == "/dev/vdz"


def test_a_disk_that_comes_late_is_waited_for(tmp_path: Path) -> None:
    async def scenario() -> str:
        asyncio.get_running_loop().call_later(0.02, add_disk, tmp_path)
        return await devices.find_disk("02/00/03", str(tmp_path), 5, dev=f"{tmp_path}/dev")

    assert asyncio.run(scenario()) == f"{tmp_path}/dev/vda"


def test_a_disk_that_the_kernel_does_not_open_yet_is_waited_for(tmp_path: Path) -> None:
    """It shows the node first."""

    async def scenario() -> None:
        add_disk(tmp_path)
        node = tmp_path / "dev/vda"
        node.unlink()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(node))  # its file cannot be opened for the same reason: ENXIO
        finding = asyncio.create_task(devices.find_disk("02/00/03", str(tmp_path), 5, dev=f"{tmp_path}/dev"))
        await asyncio.sleep(0.03)
        assert not finding.done()
        node.unlink()
        node.touch()
        assert await finding == str(node)

    asyncio.run(scenario())


@pytest.mark.parametrize("path", ["02/00/04", "02/00/05", "03"])
def test_where_there_is_no_disk_none_is_found(tmp_path: Path, path: str) -> None:
    add_disk(tmp_path)
    with pytest.raises(NotFound, match=path):
        asyncio.run(devices.find_disk(path, str(tmp_path), 0))


@pytest.mark.parametrize("path", ["", "../..", "2/0/3", "02//03", "/dev/../etc/shadow", "02/00/20"])
def test_what_is_no_pci_path_is_refused(path: str) -> None:
    with pytest.raises(InvalidArgument, match="PCI path"):
        asyncio.run(devices.find_disk(path))


def test_a_container_s_device_gets_the_guest_s_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    async def found(source: str) -> str:
        return {"02/00/03": "/dev/null"}[source]

    monkeypatch.setattr(devices, "find_disk", found)
    spec: dict[str, Any] = {
        "linux": {"devices": [{"path": "/dev/data", "type": "b", "major": 7, "minor": 0}]}
    }
    asyncio.run(devices.put_into(spec, [{"type": "blk", "id": "02/00/03", "container_path": "/dev/data"}]))
    number = os.stat("/dev/null").st_rdev
    assert spec["linux"]["devices"] == [
        {"path": "/dev/data", "type": "b", "major": os.major(number), "minor": os.minor(number)}
    ]


@pytest.mark.parametrize("device", [{"type": "vfio", "container_path": "/dev/x"}, {"type": "blk"}])
def test_a_device_that_cannot_be_had_is_refused(device: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="device"):
        asyncio.run(devices.put_into({"linux": {}}, [device]))
