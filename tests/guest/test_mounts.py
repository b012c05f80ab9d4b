from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from shim import errors
from shim.guest import mounts, syscall
from shim.guest.mounts import Storages, check_path, parse_options

from .loop import go


class Kernel:
    """Records mounts; fails those whose target is in `refuse`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mounted: list[tuple[str, str, str, list[str]]] = []
        self.unmounted: list[str] = []
        self.refuse: dict[str, list[int]] = {}
        monkeypatch.setattr(syscall, "unmount", lambda target, flags: self.unmounted.append(target))

    def mount(self, source: str, target: str, fstype: str, options: Sequence[str]) -> None:
        if self.refuse.get(target):
            number = self.refuse[target].pop(0)
            raise OSError(number, os.strerror(number), target)
        self.mounted.append((source, target, fstype, list(options)))


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


@pytest.mark.parametrize(
    ("options", "flags", "propagation", "data"),
    [
        ([], 0, [], ""),
        (["ro", "nosuid"], syscall.MS_RDONLY | syscall.MS_NOSUID, [], ""),
        (["ro", "rw"], 0, [], ""),
        (["rbind", "rprivate"], syscall.MS_BIND | syscall.MS_REC, [syscall.MS_PRIVATE | syscall.MS_REC], ""),
        (["size=1k", "mode=0700", "noexec", ""], syscall.MS_NOEXEC, [], "size=1k,mode=0700"),
        (["lowerdir=/a:/b"], 0, [], "lowerdir=/a:/b"),
    ],
)
def test_options_are_split_as_mount_8_does(
    options: list[str], flags: int, propagation: list[int], data: str
) -> None:
    assert parse_options(options) == (flags, propagation, data)


@pytest.mark.parametrize("path", ["", "a", "../a", "/a/../b", "/a/..", "/a\0b"])
def test_a_path_must_be_plain_and_absolute(path: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        check_path(path, "path")


def test_a_path_is_normalised() -> None:
    assert check_path("/a//b/./c/", "path") == "/a/b/c"


def test_storages_are_mounted_in_order_and_unmounted_in_reverse(tmp_path: Path, kernel: Kernel) -> None:
    async def test() -> None:
        storages = Storages(kernel.mount)
        a, b, c = (str(tmp_path / name) for name in "abc")
        points = await storages.add(
            [
                {"driver": "virtio-fs", "source": "tag", "mount_point": f"{a}/", "options": ["nodev"]},
                {
                    "driver": "ephemeral",
                    "source": "shm",
                    "fstype": "tmpfs",
                    "options": ["size=1"],
                    "mount_point": b,
                },
                {"driver": "overlayfs", "mount_point": c, "options": ["lowerdir=/x"]},
            ]
        )
        assert points == [a, b, c]
        assert kernel.mounted == [
            ("tag", a, "virtiofs", ["nodev"]),
            ("shm", b, "tmpfs", ["size=1"]),
            ("overlay", c, "overlay", ["lowerdir=/x"]),
        ]
        storages.remove(points)
        assert kernel.unmounted == [c, b, a]

    go(test)


def test_a_storage_of_several_containers_goes_with_the_last(tmp_path: Path, kernel: Kernel) -> None:
    async def test() -> None:
        storages = Storages(kernel.mount)
        storage = {"driver": "ephemeral", "mount_point": str(tmp_path / "a")}
        one, two = await storages.add([storage]), await storages.add([storage])
        assert len(kernel.mounted) == 1
        storages.remove(one)
        assert kernel.unmounted == []
        storages.remove(two)
        assert kernel.unmounted == two

    go(test)


def test_a_disk_that_two_containers_wait_for_is_mounted_once(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        came = asyncio.Event()

        async def find_disk(_source: str) -> str:
            await came.wait()
            return "/dev/vda"

        monkeypatch.setattr(mounts, "find_disk", find_disk)
        storages = Storages(kernel.mount)
        disk = {"driver": "blk", "mount_point": str(tmp_path / "m"), "source": "01/02", "fstype": "none"}
        adding = [asyncio.create_task(storages.add([disk])) for _ in range(2)]
        await asyncio.sleep(0)
        came.set()
        first, second = await asyncio.gather(*adding)
        assert len(kernel.mounted) == 1
        storages.remove(first)
        assert kernel.unmounted == []
        storages.remove(second)
        assert kernel.unmounted == [str(tmp_path / "m")]

    go(test)


def test_a_shared_storage_outlives_its_container(tmp_path: Path, kernel: Kernel) -> None:
    async def test() -> None:
        storages = Storages(kernel.mount)
        points = await storages.add(
            [{"driver": "ephemeral", "mount_point": str(tmp_path / "a"), "shared": True}]
        )
        storages.remove(points)
        assert kernel.unmounted == []

    go(test)


def test_a_failure_names_the_mount_point_and_undoes_the_earlier_ones(tmp_path: Path, kernel: Kernel) -> None:
    async def test() -> None:
        storages = Storages(kernel.mount)
        a, b = str(tmp_path / "a"), str(tmp_path / "b")
        kernel.refuse[b] = [errno.EPERM]
        with pytest.raises(errors.Internal, match=f"{b}: Operation not permitted"):
            await storages.add([{"driver": "ephemeral", "mount_point": point} for point in (a, b)])
        assert kernel.unmounted == [a]

    go(test)


def test_a_virtio_fs_device_may_come_a_moment_later(tmp_path: Path, kernel: Kernel) -> None:
    async def test() -> None:
        point = str(tmp_path / "a")
        kernel.refuse[point] = [errno.EINVAL, errno.EINVAL]
        await Storages(kernel.mount).add([{"driver": "virtio-fs", "source": "tag", "mount_point": point}])
        assert len(kernel.mounted) == 1

    go(test)


def test_a_virtio_fs_device_that_never_comes_is_an_error(
    tmp_path: Path, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounts, "_DEVICE_S", -1.0)

    async def test() -> None:
        point = str(tmp_path / "a")
        kernel.refuse[point] = [errno.EINVAL]
        with pytest.raises(errors.Internal, match="Invalid argument"):
            await Storages(kernel.mount).add([{"driver": "virtio-fs", "source": "t", "mount_point": point}])

    go(test)


def test_a_bind_makes_its_target_the_kind_its_source_is(tmp_path: Path, kernel: Kernel) -> None:
    async def test() -> None:
        (tmp_path / "dir").mkdir()
        (tmp_path / "file").touch()
        await Storages(kernel.mount).add(
            [
                {"driver": "bind", "source": f"{tmp_path}/dir", "mount_point": f"{tmp_path}/x/d"},
                {
                    "driver": "bind",
                    "source": f"{tmp_path}/file",
                    "mount_point": f"{tmp_path}/x/f",
                    "options": ["bind"],
                },
            ]
        )
        assert (tmp_path / "x" / "d").is_dir()
        assert (tmp_path / "x" / "f").is_file()
        assert [options for *_, options in kernel.mounted] == [["rbind"], ["bind"]]

    go(test)


def test_a_local_storage_is_a_directory_with_a_mode_and_no_mount(tmp_path: Path, kernel: Kernel) -> None:
    async def test() -> None:
        storages = Storages(kernel.mount)
        points = await storages.add(
            [{"driver": "local", "mount_point": f"{tmp_path}/l", "options": ["mode=0777"]}]
        )
        assert (tmp_path / "l").stat().st_mode & 0o7777 == 0o777
        storages.remove(points)
        assert kernel.mounted == kernel.unmounted == []

    go(test)


def test_a_local_storage_leaves_what_a_container_has_made_and_follows_no_link(
    tmp_path: Path, kernel: Kernel
) -> None:
    def local(name: str) -> dict[str, object]:
        return {"driver": "local", "mount_point": f"{tmp_path}/{name}", "options": ["mode=0777"]}

    async def test() -> None:
        (tmp_path / "directory").mkdir(mode=0o700)
        (tmp_path / "file").write_text("a container's")
        (tmp_path / "link").symlink_to("/etc")
        await Storages(kernel.mount).add([local("directory"), local("file")])
        assert (tmp_path / "directory").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "file").read_text() == "a container's"
        with pytest.raises(errors.InvalidArgument, match="link/x: leads elsewhere"):
            await Storages(kernel.mount).add([local("link/x")])

    go(test)


def test_the_agents_own_option_does_not_reach_the_kernel(tmp_path: Path, kernel: Kernel) -> None:
    async def test() -> None:
        point = tmp_path / "e"
        await Storages(kernel.mount).add(
            [{"driver": "ephemeral", "mount_point": str(point), "options": ["fsgid=0", "size=5"]}]
        )
        assert kernel.mounted[0][3] == ["size=5"]
        assert point.stat().st_mode & 0o2000
        with pytest.raises(errors.InvalidArgument):
            await Storages(kernel.mount).add(
                [{"driver": "ephemeral", "mount_point": str(point), "options": ["fsgid=x"]}]
            )

    go(test)


@pytest.mark.parametrize("driver", ["", "scsi", "nvdimm"])
def test_an_unknown_driver_is_refused(driver: str, kernel: Kernel) -> None:
    async def test() -> None:
        with pytest.raises(errors.InvalidArgument, match="storage driver"):
            await Storages(kernel.mount).add([{"driver": driver, "mount_point": "/x"}])

    go(test)
