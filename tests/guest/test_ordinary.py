"""crun's start and delete without crun: all of it or nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.guest import ordinary


@pytest.fixture
def state(tmp_path: Path, cgroups: Path) -> Path:
    """crun's directory of one container. Its cgroup is `cgroups/c1`, empty as a cgroup looks to rmdir."""
    folder = tmp_path / "crun" / "c1"
    folder.mkdir(parents=True)
    (folder / "status").write_text("{}")
    (folder / "config.json").write_text("{}")
    os.mkfifo(folder / "exec.fifo")
    (cgroups / "c1").mkdir()
    return folder


def test_the_init_process_that_waits_gets_its_byte_once(state: Path) -> None:
    waits = os.open(state / "exec.fifo", os.O_RDONLY | os.O_NONBLOCK)
    assert ordinary.start(str(state))
    assert os.read(waits, 10) == b"\0"
    assert os.read(waits, 10) == b""  # nobody keeps it open
    assert not (state / "exec.fifo").exists()
    assert not ordinary.start(str(state))
    os.close(waits)


def test_without_anybody_waiting_nothing_is_changed(state: Path) -> None:
    assert not ordinary.start(str(state))
    assert (state / "exec.fifo").exists()


def test_delete_removes_state_and_cgroup(state: Path, cgroups: Path) -> None:
    (state / "devs").mkdir()
    assert ordinary.delete(str(state), str(cgroups / "c1"))
    assert os.listdir(state.parent) == os.listdir(cgroups) == []


@pytest.mark.parametrize("in_the_way", ["cgroup", "state"])
def test_what_is_in_the_way_is_left_to_crun(state: Path, cgroups: Path, in_the_way: str) -> None:
    cgroup = cgroups / "c1"
    (cgroup / "child" if in_the_way == "cgroup" else state / "folder").mkdir()
    assert not ordinary.delete(str(state), str(cgroup))
    assert state.exists()


def test_what_is_not_there_is_left_to_crun(tmp_path: Path) -> None:
    assert not ordinary.delete(str(tmp_path / "c1"), str(tmp_path / "cgroup"))
