"""Unmount and delete, with care for what lies behind a mount and for what a hostile guest left."""

from __future__ import annotations

import errno
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8  # <sys/mount.h>


def unmount(path: str) -> None:
    """Take everything mounted at `path` off it, lazily where it is busy. No mount or no such path is fine."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    while libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        pass  # mounts stack
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
        raise OSError(code, os.strerror(code), path)


def mounts_below(path: str) -> list[str]:
    """Mount points at or below `path` in our mount namespace, the latest first."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            # proc(5): the fifth field; space, tab, newline and backslash are written as \ooo
            point = os.fsdecode(line.split(b" ")[4].decode("unicode_escape").encode("latin-1"))
            if point == path or point.startswith(path + "/"):
                found.append(point)
    return found[::-1]


def remove_tree(path: str, deadline: float) -> None:
    """Delete a file or tree that a hostile guest may have filled; a missing one is fine. Raises OSError.

    A tree with a mount in it is refused as a whole: behind the mount is somebody else's data. Depth costs
    nothing, since a directory that is not empty moves its directories up to the top first.
    """
    if mounted := mounts_below(path):
        raise OSError(errno.EBUSY, f"{mounted[0]} is still mounted", path)
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(path)
        return
    try:
        names = _fresh_names(top)
        while entries := os.listdir(top):
            for entry in entries:
                if time.monotonic() > deadline:
                    raise OSError(errno.ETIMEDOUT, "not all removed in time", path)
                _remove_entry(top, entry, names)
    finally:
        os.close(top)
    os.rmdir(path)


def _remove_entry(top: int, entry: str, names: Iterator[str]) -> None:
    try:
        os.unlink(entry, dir_fd=top)
        return
    except IsADirectoryError:
        pass
    fd = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
    try:
        for child in os.listdir(fd):
            try:
                os.unlink(child, dir_fd=fd)
            except IsADirectoryError:
                os.rename(child, next(names), src_dir_fd=fd, dst_dir_fd=top)
    finally:
        os.close(fd)
    os.rmdir(entry, dir_fd=top)


def _fresh_names(top: int) -> Iterator[str]:
    """Names that do not exist in the directory and will not, since nobody else writes there any more."""
    number = 0
    while True:
        number += 1
        try:
            os.lstat(f".removing.{number}", dir_fd=top)
        except FileNotFoundError:
            yield f".removing.{number}"


def remove_socket(path: str) -> None:
    try:
        if os.lstat(path).st_mode & 0o170000 == 0o140000:  # S_IFSOCK
            os.unlink(path)
    except FileNotFoundError:
        pass
