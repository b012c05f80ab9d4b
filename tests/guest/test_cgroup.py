from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from shim import errors
from shim.guest import cgroup

from .loop import eventually, go


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("/default/c1", "/default/c1"),
        ("default//c1/", "/default/c1"),
        ("/./a/./b", "/a/b"),
        ("", "/kata/cid"),
        ("/", "/kata/cid"),
        ("system.slice:cri-containerd:abc", "/system.slice/cri-containerd-abc"),
        ("a:b", "/a:b"),
    ],
)
def test_a_cgroups_path_is_a_plain_path_below_the_root(given: str, path: str) -> None:
    assert cgroup.normalise(given, "cid") == path


@pytest.mark.parametrize("given", ["../x", "/a/../../b", "..:x:y", "/a/b\0c"])
def test_a_cgroups_path_cannot_leave_the_root(given: str) -> None:
    with pytest.raises(errors.InvalidArgument):
        cgroup.normalise(given, "cid")


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("/a", "/a", True),
        ("/a", "/a/b", True),
        ("/a/b", "/a", True),
        ("/a", "/ab", False),
        ("/a/x", "/a/y", False),
    ],
)
def test_cgroups_overlap_when_one_is_above_the_other(one: str, other: str, overlap: bool) -> None:
    assert cgroup.overlaps(one, other) is overlap


def test_killing_writes_to_the_cgroup_and_to_no_other(cgroups: Path) -> None:
    (cgroups / "c1").mkdir()
    (cgroups / "c2").mkdir()
    cgroup.kill("/c1")
    assert (cgroups / "c1" / "cgroup.kill").read_text() == "1"
    assert not (cgroups / "c2" / "cgroup.kill").exists()


def test_a_limit_is_written_to_its_file_and_what_is_none_is_named(cgroups: Path) -> None:
    (cgroups / "c1").mkdir()
    (cgroups / "c1/memory.high").touch()
    cgroup.set_limit("/c1", "memory.high", "4096")
    assert (cgroups / "c1/memory.high").read_text() == "4096"
    for name, words in (
        ("memory.none", "memory.none: cannot be set to '1': No such file"),
        ("../memory.high", "'../memory.high' is no file of a cgroup"),
        ("..", "is no file of a cgroup"),
        ("", "is no file of a cgroup"),
    ):
        with pytest.raises(errors.InvalidArgument, match=words):
            cgroup.set_limit("/c1", name, "1")
    assert [path.name for path in cgroups.rglob("*")] == ["c1", "memory.high"], "nothing is made"


def test_killing_in_a_cgroup_that_is_gone_is_no_error() -> None:
    cgroup.kill("/gone")


def test_a_cgroup_is_frozen_when_the_kernel_says_so(cgroups: Path) -> None:
    async def test() -> None:
        (cgroups / "c1").mkdir()
        (cgroups / "c1/cgroup.events").write_text("populated 1\nfrozen 0\n")
        freezing = asyncio.create_task(cgroup.freeze("/c1"))
        await eventually((cgroups / "c1/cgroup.freeze").exists)
        assert (cgroups / "c1/cgroup.freeze").read_text() == "1"
        assert not freezing.done()
        (cgroups / "c1/cgroup.events").write_text("populated 1\nfrozen 1\n")
        await freezing
        cgroup.thaw("/c1")
        assert (cgroups / "c1/cgroup.freeze").read_text() == "0"

    go(test)


def test_what_cannot_be_frozen_goes_on(cgroups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "_FREEZE_S", 0.01)

    async def test() -> None:
        (cgroups / "c1").mkdir()
        (cgroups / "c1/cgroup.events").write_text("frozen 0\n")
        with pytest.raises(errors.DeadlineExceeded, match="stand still"):
            await cgroup.freeze("/c1")
        assert (cgroups / "c1/cgroup.freeze").read_text() == "0"
        monkeypatch.setattr(cgroup, "_FREEZE_S", 10)
        freezing = asyncio.create_task(cgroup.freeze("/c1"))
        await eventually(lambda: (cgroups / "c1/cgroup.freeze").read_text() == "1")
        freezing.cancel()  # its caller has gone
        with pytest.raises(asyncio.CancelledError):
            await freezing
        assert (cgroups / "c1/cgroup.freeze").read_text() == "0"

    go(test)


def test_processes_are_those_of_all_cgroups_below(cgroups: Path) -> None:
    (cgroups / "c1/inner").mkdir(parents=True)
    (cgroups / "c1/cgroup.procs").write_text("7\n9\n")
    (cgroups / "c1/inner/cgroup.procs").write_text("8\n")
    assert sorted(cgroup.processes("/c1")) == [7, 8, 9]
    assert cgroup.processes("/gone") == []


def test_oom_kills_are_reported_once_each_time_they_rise(cgroups: Path) -> None:
    async def test() -> None:
        (cgroups / "c1").mkdir()
        events = cgroups / "c1" / "memory.events"
        events.write_text("low 0\noom 0\noom_kill 0\n")
        seen: list[int] = []
        watch = cgroup.OomWatch("/c1", lambda: seen.append(1))
        events.write_text("low 0\noom 3\noom_kill 2\n")
        await eventually(lambda: len(seen) == 1)
        watch.check()
        assert len(seen) == 1
        watch.close()
        watch.close()

    go(test)


def test_without_a_memory_controller_nothing_is_reported() -> None:
    async def test() -> None:
        watch = cgroup.OomWatch("/none", lambda: pytest.fail("no events"))
        watch.check()
        watch.close()

    go(test)
