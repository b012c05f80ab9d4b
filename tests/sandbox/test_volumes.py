"""Each mount and device of a spec on its way into the guest."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shim.agent.api import Device, Storage
from shim.errors import InvalidArgument, NotFound, ShimError, Unimplemented
from shim.hypervisor.api import VmSpec
from shim.log import Log
from shim.rootfs.api import Mount
from shim.sandbox import memory_volumes
from shim.sandbox.disks import Disks
from shim.sandbox.volumes import SANDBOX_SHM, VolumeMaker, Volumes
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.share import FakeShare

ROOTFS = (Mount("bind", "/h/rootfs", ("rbind",)),)


class Kit:
    """One container's volumes on fakes."""

    def __init__(self, tmp_path: Path) -> None:
        self.share, self.hypervisor = FakeShare(), FakeHypervisor()
        log = Log(2, "error")
        self.disks = Disks(self.hypervisor, log)
        self.maker, self.bundle = VolumeMaker(self.share, self.disks, "c1", log), tmp_path

    async def make(self, *, rootfs: Sequence[Mount] = ROOTFS, **spec: Any) -> Volumes:
        if self.hypervisor.spec is None:
            await self.hypervisor.start(VmSpec("vm", self.bundle, Path("/k"), Path("/i"), (), 128, 1))
        return await self.maker.make(self.bundle, spec, rootfs)


def bind(source: str | Path, destination: str, *options: str) -> dict[str, Any]:
    return {"type": "bind", "source": str(source), "destination": destination, "options": ["rbind", *options]}


@pytest.fixture
def block_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that says of itself it is the block device 7:3."""
    path = tmp_path / "disk"
    path.touch()
    real = os.stat

    def lying(of: Any, **more: Any) -> os.stat_result:
        found = real(of, **more)
        if str(of) != str(path):
            return found
        fields = list(found)
        fields[0] = stat.S_IFBLK | 0o660
        names = {"st_rdev": os.makedev(7, 3)}
        return os.stat_result(fields, names)

    monkeypatch.setattr(os, "stat", lying)
    return path  # type: ignore[return-value]


def test_a_file_system_that_does_not_answer_holds_up_its_own_container_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS whose server has gone, say: everything else that the shim serves goes on."""
    real, answers = os.stat, threading.Event()

    def silent(of: Any, **more: Any) -> os.stat_result:
        if str(of) == str(tmp_path / "nfs"):
            answers.wait(5)
        return real(of, **more)

    async def scenario() -> None:
        (tmp_path / "nfs").mkdir()
        kit = Kit(tmp_path)
        monkeypatch.setattr(os, "stat", silent)
        making = asyncio.create_task(kit.make(mounts=[bind(tmp_path / "nfs", "/data")]))
        began = time.monotonic()
        await asyncio.sleep(0.02)
        assert time.monotonic() - began < 2 and not making.done()
        answers.set()
        assert len((await making).mounts) == 1

    asyncio.run(scenario())


def test_files_are_shared_and_the_guest_s_trees_are_its_own(tmp_path: Path) -> None:
    async def scenario() -> None:
        kit = Kit(tmp_path)
        (tmp_path / "data").mkdir()
        made = await kit.make(
            mounts=[
                {"destination": "/proc", "type": "proc", "source": "proc"},
                bind(tmp_path / "data", "/data", "ro"),
                bind("data", "/relative"),
                bind("/proc/sys", "/sys-of-the-guest"),
                bind("/dev/null", "/dev/zero"),
            ]
        )
        sources = {mount["destination"]: mount["source"] for mount in made.mounts}
        shared = f"/guest/c1{tmp_path}/data"
        assert sources == {
            "/proc": "proc",
            "/data": shared,
            "/relative": shared,
            "/sys-of-the-guest": "/proc/sys",
            "/dev/zero": "/dev/null",
        }
        assert (made.root, made.storages, made.agent_devices) == ("/guest/c1/rootfs", [], [])
        await kit.maker.remove()
        assert not kit.share.mounted

    asyncio.run(scenario())


def test_data_below_dev_shm_is_the_host_s(tmp_path: Path) -> None:
    source = Path("/dev/shm", f"kata-py-{os.getpid()}")

    async def scenario() -> None:
        made = await Kit(tmp_path).make(mounts=[bind(source, "/data")])
        assert made.mounts[0]["source"] == f"/guest/c1{source}"

    source.mkdir()
    try:
        asyncio.run(scenario())
    finally:
        source.rmdir()


def test_a_missing_source_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(NotFound, match="/no/such/volume"):
            await Kit(tmp_path).make(mounts=[bind("/no/such/volume", "/data")])

    asyncio.run(scenario())


def test_shm_is_the_sandbox_s(tmp_path: Path) -> None:
    async def scenario() -> None:
        made = await Kit(tmp_path).make(mounts=[bind("/run/x/shm", "/dev/shm")])
        assert made.mounts[0]["source"] == SANDBOX_SHM

    asyncio.run(scenario())


def test_an_empty_dir_in_memory_is_a_tmpfs_of_the_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        source = tmp_path / "pods/uid-1/volumes/kubernetes.io~empty-dir/cache"
        source.mkdir(parents=True)
        made = await Kit(tmp_path).make(mounts=[bind(source, "/cache")])
        assert made.storages == []  # it is on a disk: shared as any directory
        monkeypatch.setattr(memory_volumes, "tmpfs_bytes", lambda path: 4096 if path == source else None)
        made = await Kit(tmp_path).make(mounts=[bind(source, "/cache"), bind(source, "/dev/shm")])
        (storage,) = made.storages
        assert [mount["source"] for mount in made.mounts] == [storage.mount_point] * 2

    asyncio.run(scenario())


def test_a_block_device_that_is_bound_is_a_disk_under_its_path(block_device: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        kit = Kit(tmp_path)
        made = await kit.make(
            mounts=[bind(block_device, "/dev/data", "ro"), bind(block_device, "/dev/again", "ro")]
        )
        assert made.mounts == []
        assert [device["path"] for device in made.devices] == ["/dev/data", "/dev/again"]
        assert {(device["type"], device["major"], device["minor"]) for device in made.devices} == {
            ("b", 7, 3)
        }
        assert made.agent_devices == [
            Device("blk", "01/00/01", "/dev/data"),
            Device("blk", "01/00/01", "/dev/again"),
        ]
        await kit.maker.remove()
        assert kit.hypervisor.calls[1:] == [f"add_disk:{block_device}:ro", "remove_disk:disk1"]

    asyncio.run(scenario())


def test_a_rootfs_on_a_block_device_is_a_disk_that_the_guest_mounts(
    block_device: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        kit = Kit(tmp_path)
        made = await kit.make(rootfs=(Mount("ext4", str(block_device), ("discard", "rw")),))
        point = "/run/kata-containers/sandbox/rootfs/c1"
        assert made.root == point
        assert made.storages == [Storage("blk", "01/00/01", "ext4", point, ("discard", "rw"))]
        assert not kit.share.mounted

    asyncio.run(scenario())


def test_images_of_the_same_number_on_two_file_systems_are_two_disks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def same_number(of: Any, **more: Any) -> os.stat_result:
        found = list(real(of, **more))
        if str(of).endswith(".img"):  # st_ino, st_dev
            found[1:3] = 12, 7 if "a.img" in str(of) else 8
        return os.stat_result(found)

    async def scenario() -> None:
        kit = Kit(tmp_path)
        monkeypatch.setattr(os, "stat", same_number)
        points = []
        for name in ("a.img", "b.img", "a.img"):
            (tmp_path / name).touch()
            made = await kit.make(rootfs=(Mount("ext4", str(tmp_path / name), ("loop",)),))
            points.append(made.storages[0].source)
        assert points[0] == points[2] != points[1]

    asyncio.run(scenario())


def test_a_rootfs_in_an_image_file_needs_no_loop_device(tmp_path: Path) -> None:
    async def scenario() -> None:
        image = tmp_path / "image"
        image.touch()
        kit = Kit(tmp_path)
        made = await kit.make(rootfs=(Mount("ext4", str(image), ("loop", "ro")),))
        assert made.storages[0].options == ("ro",)
        assert kit.hypervisor.calls[1:] == [f"add_disk:{image}:ro"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("device", "error", "message"),
    [
        ({"path": "/dev/x", "type": "b", "major": 4095, "minor": 9}, NotFound, "4095:9 for /dev/x"),
        ({"path": "/dev/x", "type": "b"}, InvalidArgument, "/dev/x: no device number"),
    ],
)
def test_a_device_that_is_not_there_is_named(
    tmp_path: Path, device: dict[str, Any], error: type[ShimError], message: str
) -> None:
    async def scenario() -> None:
        with pytest.raises(error, match=message):
            await Kit(tmp_path).make(linux={"devices": [device]})

    asyncio.run(scenario())


def test_character_devices_pass_as_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        null = {"path": "/dev/null", "type": "c", "major": 1, "minor": 3}
        made = await Kit(tmp_path).make(linux={"devices": [null]})
        assert (made.devices, made.agent_devices) == ([null], [])

    asyncio.run(scenario())


def test_one_disk_serves_all_containers_and_leaves_with_the_last(block_device: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        kit = Kit(tmp_path)
        await kit.make()
        path = await kit.disks.plug("c1", block_device, read_only=False)
        assert await kit.disks.plug("c2", block_device, read_only=False) == path
        assert await kit.disks.plug("c2", block_device, read_only=True) != path
        await kit.disks.remove("c1")
        assert not [call for call in kit.hypervisor.calls if call.startswith("remove")]
        await kit.disks.remove("c2")
        assert [call for call in kit.hypervisor.calls if call.startswith("remove")] == [
            "remove_disk:disk1",
            "remove_disk:disk2",
        ]

    asyncio.run(scenario())


IDS = {
    "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
    "gidMappings": [{"containerID": 0, "hostID": 2000, "size": 10}],
}


def test_ids_of_files_are_mapped_on_the_host(tmp_path: Path) -> None:
    async def scenario() -> None:
        kit = Kit(tmp_path)
        for name in ("own", "container-s", "plain"):
            (tmp_path / name).touch()
        own = {**bind(tmp_path / "own", "/own"), **IDS}
        mounts = [own, bind(tmp_path / "container-s", "/c", "idmap", "ro"), bind(tmp_path / "plain", "/p")]
        made = await kit.make(mounts=mounts, linux=IDS)
        mapped = ("0:1000:10", "0:2000:10")
        assert list(kit.share.ids.values()) == [mapped, mapped, None]
        assert all(mount.keys() == mounts[2].keys() for mount in made.mounts)  # nothing is left to be mapped
        assert made.mounts[1]["options"] == ["rbind", "ro"]

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "mount",
    [
        {"type": "tmpfs", "source": "tmpfs", "destination": "/d", **IDS},
        {**bind("/proc/sys", "/d"), **IDS},
        {**bind("/dev/null", "/d"), **IDS},
        bind("/usr", "/d", "ridmap"),
    ],
    ids=str,
)
def test_ids_that_cannot_be_mapped_are_refused_by_the_mount_s_name(
    tmp_path: Path, mount: dict[str, Any]
) -> None:
    async def scenario() -> None:
        with pytest.raises(Unimplemented, match="/d: "):
            await Kit(tmp_path).make(mounts=[mount])

    asyncio.run(scenario())


def test_ids_of_a_disk_cannot_be_mapped(block_device: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        with pytest.raises(Unimplemented, match="rootfs"):
            options = ("uidmap=0:1:1", "gidmap=0:1:1")
            await Kit(tmp_path).make(rootfs=[Mount("ext4", str(block_device), options)])
        with pytest.raises(Unimplemented, match="/dev/disk"):
            await Kit(tmp_path).make(mounts=[{**bind(block_device, "/dev/disk"), **IDS}])

    asyncio.run(scenario())
