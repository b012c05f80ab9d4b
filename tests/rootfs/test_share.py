"""The share with a stand-in for virtiofsd: what is mounted, what is refused, what is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shim.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, ShimError
from shim.log import Log
from shim.rootfs.api import Mount
from shim.rootfs.share import GUEST_DIR, VirtiofsShare

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

STAND_IN = """#!/bin/sh
[ "$1" = --version ] && { echo virtiofsd 1.10.0; exit 0; }
echo "serving $*"
exec sleep 60
"""
Scenario = Callable[[VirtiofsShare], Awaitable[None]]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def run(run_dir: Path, scenario: Scenario, stand_in: str = STAND_IN) -> None:
    """Run a scenario on a started share; afterwards nothing of it may be left."""
    program = run_dir.parent / "virtiofsd"
    program.write_text(stand_in)
    program.chmod(0o755)

    async def whole() -> None:
        share = VirtiofsShare(run_dir, Log(2, "error"), str(program))
        try:
            await share.start()
            await scenario(share)
        finally:
            await share.aclose()
            await share.aclose()

    asyncio.run(whole())
    assert os.listdir(run_dir) == []
    assert str(run_dir) not in Path("/proc/self/mountinfo").read_text()


def host_path(run_dir: Path, guest_path: str) -> Path:
    directory, _, name = guest_path.rpartition("/")
    assert directory == GUEST_DIR
    return run_dir / "share" / name


def bind(path: Path) -> Mount:
    return Mount("bind", str(path), ("rbind", "rw"))


def test_it_listens_when_start_returns(run_dir: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(share.socket))
        assert share.tag == "kataShared"
        os.kill(share.pid, 0)

    run(run_dir, scenario)


def test_the_shared_directory_is_a_shared_mount_of_its_own(run_dir: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        (line,) = [
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()  # noqa: ASYNC240
            if f" {run_dir}/share " in line
        ]
        assert " shared:" in line

    run(run_dir, scenario)


def test_nothing_is_written_beside_what_was_shared(run_dir: Path, tmp_path: Path) -> None:
    """The guest sees the directory by this mount: it can neither fill it, nor put a link where a name is to come."""

    async def scenario(share: VirtiofsShare) -> None:
        path = host_path(run_dir, await share.mount_rootfs("c1", [Mount("tmpfs", "tmpfs")]))
        (path / "mine").touch()
        for act in (Path.touch, Path.mkdir, lambda path: path.symlink_to(tmp_path / "astray")):
            with pytest.raises(OSError, match="Read-only"):
                act(run_dir / "share" / "c1-2")
        file = tmp_path / "file"
        file.touch()
        assert host_path(run_dir, await share.bind("c1", file, read_only=False)).is_file()

    run(run_dir, scenario)


def test_a_rootfs_is_mounted_and_unmounted(run_dir: Path, tmp_path: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        root = tmp_path / "root"
        root.mkdir()
        (root / "etc").touch()
        path = host_path(run_dir, await share.mount_rootfs("c1", [bind(root)]))
        assert os.listdir(path) == ["etc"]
        await share.remove("c1")
        await share.remove("c1")
        assert not path.exists()
        assert (root / "etc").exists()

    run(run_dir, scenario)


def test_closing_unmounts_what_nobody_removed_and_keeps_the_data(run_dir: Path, tmp_path: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "data").touch()
            await share.mount_rootfs(name, [bind(tmp_path / name), Mount("tmpfs", "tmpfs")])

    run(run_dir, scenario)
    assert (tmp_path / "a" / "data").exists()


def test_a_busy_mount_is_removed_all_the_same(run_dir: Path, tmp_path: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        path = host_path(run_dir, await share.mount_rootfs("c1", [Mount("tmpfs", "tmpfs")]))
        fd = os.open(path / "open", os.O_CREAT | os.O_WRONLY)
        await share.remove("c1")
        assert not path.exists()
        os.close(fd)

    run(run_dir, scenario)


def test_names_are_never_used_twice(run_dir: Path, tmp_path: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        first = await share.mount_rootfs("c1", [bind(tmp_path)])
        await share.remove("c1")
        assert await share.mount_rootfs("c1", [bind(tmp_path)]) != first

    run(run_dir, scenario)


def test_of_several_mounts_a_failing_one_undoes_the_others(run_dir: Path, tmp_path: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        with pytest.raises(NotFound, match="/no/such"):
            await share.mount_rootfs("c1", [bind(tmp_path), Mount("bind", "/no/such", ("rbind",))])
        assert list((run_dir / "share").iterdir()) == []
        with pytest.raises(InvalidArgument):
            await share.mount_rootfs("c1", [])

    run(run_dir, scenario)


def test_a_cancelled_mount_is_undone(run_dir: Path, tmp_path: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        mounting = asyncio.ensure_future(share.mount_rootfs("c1", [Mount("tmpfs", "tmpfs")] * 20))
        await asyncio.sleep(0)
        mounting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await mounting
        assert list((run_dir / "share").iterdir()) == []

    run(run_dir, scenario)


def test_files_and_directories_bind(run_dir: Path, tmp_path: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        file = tmp_path / "hosts"
        file.write_text("127.0.0.1")
        shared = host_path(run_dir, await share.bind("c1", file, read_only=False))
        shared.write_text("changed")
        assert file.read_text() == "changed"
        directory = host_path(run_dir, await share.bind("c1", tmp_path, read_only=True))
        with pytest.raises(OSError, match="Read-only"):
            (directory / "new").touch()
        link = tmp_path / "link"
        link.symlink_to(file)
        assert host_path(run_dir, await share.bind("c1", link, read_only=True)).read_text() == "changed"

    run(run_dir, scenario)


@pytest.mark.parametrize("source", ["/no/such/file", "/etc/passwd/below"])
def test_a_missing_source_is_named(run_dir: Path, source: str) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        with pytest.raises(NotFound, match=source):
            await share.bind("c1", Path(source), read_only=True)
        assert list((run_dir / "share").iterdir()) == []

    run(run_dir, scenario)


def test_a_source_that_cannot_be_looked_at_is_named(run_dir: Path, tmp_path: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        loop = tmp_path / "loop"
        loop.symlink_to(loop)
        with pytest.raises(Internal, match=f"bind mount source {loop}: Too many levels of symbolic links"):
            await share.bind("c1", loop, read_only=True)

    run(run_dir, scenario)


@pytest.mark.parametrize("container_id", ["", ".", "..", "../x", "a/b", "-x", "a b", "a\n", "a\0", "x" * 200])
def test_a_container_id_that_is_no_path_part_is_refused(run_dir: Path, container_id: str) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        with pytest.raises(InvalidArgument):
            await share.mount_rootfs(container_id, [bind(run_dir)])
        with pytest.raises(InvalidArgument):
            await share.bind(container_id, run_dir, read_only=True)

    run(run_dir, scenario)


def test_the_daemons_death_is_told_with_its_last_words(run_dir: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        waiting = asyncio.ensure_future(share.wait())
        os.kill(share.pid, signal.SIGKILL)
        assert (await asyncio.wait_for(waiting, 5)).startswith("virtiofsd was killed by signal 9")

    run(run_dir, scenario)


def test_a_daemon_that_cannot_run_fails_the_start_and_leaves_nothing(run_dir: Path) -> None:
    async def scenario(share: VirtiofsShare) -> None:
        raise AssertionError("started")

    with pytest.raises(ShimError, match="cannot execute"):
        run(run_dir, scenario, "#!/bin/sh\necho cannot execute; exit 1\n")
    assert os.listdir(run_dir) == []


def test_before_start_nothing_can_be_shared(run_dir: Path) -> None:
    async def scenario() -> None:
        share = VirtiofsShare(run_dir, Log(2, "error"))
        with pytest.raises(FailedPrecondition):
            await share.mount_rootfs("c1", [bind(run_dir)])
        with pytest.raises(FailedPrecondition):
            await share.wait()
        await share.aclose()

    asyncio.run(scenario())
