"""CopyFile: files of the host in a guest that shares no file system with it (Kata's `shared_fs = "none"`).

A file comes in pieces and takes its place when it is whole. All lies below one directory, and no link is followed on
the way: containers write there, too, and must not lead the agent elsewhere.

Source: Kata's agent, do_copy_file (rpc.rs, 4.1).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Mapping, Sequence

from shim import errors
from shim.guest.mounts import check_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SHARED = "/run/kata-containers/shared/containers"
_DIRECTORY = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def copy_file(request: Mapping[str, Any], root: str = SHARED) -> None:
    """Make what an agent.proto `CopyFileRequest` describes, below `root`: a directory (of which the content stays), a
    link to `data`, or `data` at `offset` of a file, replacing what is there of another kind."""
    path, mode = check_path(request.get("path", ""), "path"), request.get("file_mode", 0)
    if not path.startswith(f"{root}/"):
        raise errors.InvalidArgument(f"path {path} is not below {root}")
    owner = request.get("uid", 0), request.get("gid", 0)
    if min(owner) < -1:
        raise errors.InvalidArgument(f"{path}: no such owner: {owner}")
    *parents, name = path.removeprefix(f"{root}/").split("/")
    try:
        os.makedirs(root, exist_ok=True)
        with contextlib.ExitStack() as stack:
            parent = _open_parent(root, parents, request.get("dir_mode", 0) & 0o777, owner)
            stack.callback(os.close, parent)
            if stat.S_ISDIR(mode):
                _make_directory(parent, name, mode, owner)
            elif stat.S_ISLNK(mode):
                _remove(parent, name)
                os.symlink(request.get("data", b""), os.fsencode(name), dir_fd=parent)
                os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
            elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                _write(parent, name, request, owner)
            else:
                raise errors.InvalidArgument(f"{path}: neither file, directory nor link: mode {mode:o}")
    except OSError as error:
        # a link or a file where a directory should be
        kind = errors.FailedPrecondition if error.errno == errno.ENOTDIR else errors.Internal
        raise kind(f"copy to {path}: {error.strerror}") from error


def _open_parent(root: str, names: Sequence[str], mode: int, owner: tuple[int, int]) -> int:
    """A descriptor of the directory, which is made with those above it."""
    found = os.open(root, os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        above = found
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=above)
                os.chown(name, *owner, dir_fd=above, follow_symlinks=False)
            found = os.open(name, _DIRECTORY, dir_fd=above)
        finally:
            os.close(above)
    return found


def _make_directory(parent: int, name: str, mode: int, owner: tuple[int, int]) -> None:
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(name, dir_fd=parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=parent)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, made := os.open(name, _DIRECTORY, dir_fd=parent))
        os.fchown(made, *owner)
        os.fchmod(made, stat.S_IMODE(mode))


def _write(parent: int, name: str, request: Mapping[str, Any], owner: tuple[int, int]) -> None:
    data, offset, size = request.get("data", b""), request.get("offset", 0), request.get("file_size", 0)
    if offset < 0 or offset + len(data) > size:
        raise errors.InvalidArgument(f"{name}: {len(data)} bytes at {offset} of a file of {size}")
    growing, flags = f".{name}.copying", os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if offset == 0:
        _remove(parent, growing)
        flags |= os.O_CREAT | os.O_EXCL
    with open(os.open(growing, flags, 0o600, dir_fd=parent), "wb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise errors.FailedPrecondition(f"{name}: what has come of it was replaced")
        while data:
            count = os.pwrite(file.fileno(), data, offset)
            data, offset = data[count:], offset + count
        if os.fstat(file.fileno()).st_size < size:
            return
        os.fchown(file.fileno(), *owner)  # first: it takes set-user-ID away
        os.fchmod(file.fileno(), stat.S_IMODE(request.get("file_mode", 0)))
    try:
        os.rename(growing, name, src_dir_fd=parent, dst_dir_fd=parent)
    except IsADirectoryError:
        _remove(parent, name)
        os.rename(growing, name, src_dir_fd=parent, dst_dir_fd=parent)


def _remove(parent: int, name: str) -> None:
    """Whatever it is, if it is there."""
    with contextlib.suppress(FileNotFoundError):
        try:
            os.unlink(name, dir_fd=parent)
        except IsADirectoryError:
            import shutil  # seldom needed

            shutil.rmtree(name, dir_fd=parent)
