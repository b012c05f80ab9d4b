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

from shim.errors import DataLoss, ResourceExhausted

_MIB = 1 << 20
# Pages are looked at in pieces of this size when memory is written; one of zeros only stays a hole.
_PIECE = 16 << 10
_ZEROS = bytes(_PIECE)
_READ = 4 << 20


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
    """Copy what is allocated of the file into fresh memory. DataLoss if it is not there or has another
    size, ResourceExhausted without room."""
    fd = _open(source)
    try:
        size = os.fstat(memory).st_size
        if os.fstat(fd).st_size != size:
            raise DataLoss(f"{source} is of {os.fstat(fd).st_size} bytes and not of {size}")
        for start, end in _extents(fd, size):
            os.lseek(memory, start, os.SEEK_SET)
            _copy(fd, memory, start, end)
    finally:
        os.close(fd)


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataLoss(f"{path}: {error.strerror}") from error


def _copy(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        # Not copy_file_range, which wants one file system for both.
        try:
            copied = os.sendfile(target, source, start, end - start)
        except OSError as error:
            raise ResourceExhausted(f"the guest's memory: {error.strerror}") from error
        if copied == 0:
            raise DataLoss(f"the snapshot's memory ends at {start}")
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
