"""Guest memory to a file and back: every byte, holes as holes, no file trusted to be whole."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from shim.hypervisor.api import SnapshotRefused, SnapshotUnusable
from shim.hypervisor.qemu import memory

MIB = 1 << 20
CONTENT = {0: b"first", 4096: b"page", 3 * MIB - 1: b"xy", 8 * MIB - 4: b"last"}


def filled(fd: int) -> None:
    for offset, data in CONTENT.items():
        os.pwrite(fd, data, offset)
    os.pwrite(fd, bytes(MIB), 5 * MIB)  # allocated, but zeros


def test_memory_comes_back_byte_by_byte(tmp_path: Path) -> None:
    with memory.create(8) as original, memory.create(8) as copy:
        filled(original)
        memory.save(original, tmp_path / "memory")
        memory.load(tmp_path / "memory", copy)
        assert os.pread(copy, 8 * MIB, 0) == os.pread(original, 8 * MIB, 0)


def test_zeros_take_no_room(tmp_path: Path) -> None:
    with memory.create(8) as original, memory.create(8) as copy:
        filled(original)
        memory.save(original, tmp_path / "memory")
        assert (tmp_path / "memory").stat().st_blocks * 512 < MIB
        memory.load(tmp_path / "memory", copy)
        assert os.fstat(copy).st_blocks * 512 < MIB


def test_the_file_is_ours_alone_and_new(tmp_path: Path) -> None:
    with memory.create(1) as fd:
        memory.save(fd, tmp_path / "memory")
        assert (tmp_path / "memory").stat().st_mode & 0o777 == 0o600
        with pytest.raises(FileExistsError):
            memory.save(fd, tmp_path / "memory")


def test_empty_memory_is_one_hole(tmp_path: Path) -> None:
    with memory.create(4) as original, memory.create(4) as copy:
        memory.save(original, tmp_path / "memory")
        memory.load(tmp_path / "memory", copy)
        assert os.fstat(copy).st_blocks == 0


def test_what_changes_in_one_copy_is_in_no_other(tmp_path: Path) -> None:
    with memory.create(1) as one, memory.create(1) as two:
        os.pwrite(one, b"template", 0)
        memory.save(one, tmp_path / "memory")
        memory.load(tmp_path / "memory", two)
        os.pwrite(two, b"guest", 0)
        assert (tmp_path / "memory").read_bytes()[:8] == b"template"


@pytest.mark.parametrize("size", [0, MIB - 1, MIB + 1, 2 * MIB])
def test_a_file_of_another_size_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "memory").touch()
    os.truncate(tmp_path / "memory", size)
    with memory.create(1) as fd, pytest.raises(SnapshotRefused, match=f"{size} bytes"):
        memory.load(tmp_path / "memory", fd)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with memory.create(1) as fd, pytest.raises(SnapshotUnusable, match="gone: No such file"):
        memory.load(tmp_path / "gone", fd)


def test_no_room_is_not_the_files_fault(tmp_path: Path) -> None:
    with memory.create(8) as original, memory.create(8) as copy:
        filled(original)
        memory.save(original, tmp_path / "memory")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * MIB, limits[1]))
        try:
            with pytest.raises(SnapshotUnusable, match="copying the snapshot's memory: File too large"):
                memory.load(tmp_path / "memory", copy)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_the_memory_is_closed_with_its_block() -> None:
    with memory.create(1) as fd:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
