"""Guest memory: a memfd of ours, empty or filled from a file, that QEMU maps shared.

It has no name, so nothing is left behind by whatever ends. A snapshot's memory is copied and neither mapped
privately (vhost-user processes would see the file's pages, not the guest's) nor reflinked (the guest's
memory would be written to a disk, secrets included).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shim.errors import ShimError
from shim.hypervisor.api import SnapshotRefused, SnapshotUnusable

_MIB = 1 << 20
# Pages are looked at in pieces of this size when memory is written; one of zeros only stays a hole.
_PIECE = 16 << 10
_ZEROS = bytes(_PIECE)
_READ = 4 << 20
# What says nothing against a snapshot that cannot be read.
_OUTSIDE = frozenset(
    (
        errno.ENOENT,
        *(errno.EMFILE, errno.ENFILE),
        *(errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
    )
)


@contextmanager
def create(mib: int) -> Iterator[int]:
    """A memfd of `mib` MiB, without allocated pages, ours until the end of the block."""
    fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
    try:
        os.truncate(fd, mib * _MIB)
        yield fd
    finally:
        os.close(fd)


def load(source: Path, memory: int) -> None:
    """Copy what is allocated of the file into fresh memory. SnapshotRefused if it has another size or cannot be
    read, SnapshotUnusable if it is not there or there is no room."""
    fd = open_saved(source)
    try:
        size = os.fstat(memory).st_size
        if os.fstat(fd).st_size != size:
            raise SnapshotRefused(f"{source} is of {os.fstat(fd).st_size} bytes and not of {size}")
        for start, end in _extents(fd, size):
            os.lseek(memory, start, os.SEEK_SET)
            _copy(fd, memory, start, end)
    finally:
        os.close(fd)


def open_saved(path: Path) -> int:
    """A file of a snapshot. SnapshotUnusable if it is not there (somebody has removed the snapshot since it was
    chosen) or the host is out of descriptors; else SnapshotRefused."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise _failed(str(path), error) from error


def _failed(what: str, error: OSError) -> ShimError:
    kind = SnapshotUnusable if error.errno in _OUTSIDE else SnapshotRefused
    return kind(f"{what}: {error.strerror}")


def _copy(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        # Not copy_file_range, which wants one file system for both.
        try:
            copied = os.sendfile(target, source, start, end - start)
        except OSError as error:
            raise _failed("copying the snapshot's memory", error) from error
        if copied == 0:
            raise SnapshotRefused(f"the snapshot's memory ends at {start}")
        start += copied


def save(memory: int, target: Path) -> None:
    """Write the memory to a new file, zeros as holes."""
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(memory).st_size
        os.truncate(fd, size)
        for start, end in _extents(memory, size):
            for offset in range(start, end, _READ):
                _write(fd, os.pread(memory, min(_READ, end - offset), offset), offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def _write(fd: int, data: bytes, offset: int) -> None:
    for at in range(0, len(data), _PIECE):
        piece = data[at : at + _PIECE]
        if piece != _ZEROS[: len(piece)]:
            os.pwrite(fd, piece, offset + at)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data: (start, end), in order."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:  # only a hole is left
                raise
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
