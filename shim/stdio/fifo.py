"""Open containerd's FIFOs in the one order that neither blocks nor fails nor loses bytes.

stdout, stderr   our own read end first, kept until Delete, then the write end that the device gets. With a
                 reader of ours the open cannot fail with ENXIO, a client that detaches is no EPIPE, and what a
                 short process wrote waits in the FIFO for a client that opens late.
stdin            one end for reading and writing, which the device gets: as its own writer it never sees a
                 client that detaches as the end of input, nor as a hang-up that wakes it for ever.

Everything is opened with O_NONBLOCK, so nothing here can block the event loop. Each descriptor comes from its
own open(): the device sets O_NONBLOCK and offsets belong to the open file description. What is not a FIFO
(/dev/null, a file) is opened as it is, for reading or for appending.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from shim.errors import Internal, InvalidArgument, NotFound, ShimError

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def open_input(path: str) -> int:
    """What the device reads stdin from. NotFound, InvalidArgument or Internal, naming the path."""
    try:
        fifo = stat.S_ISFIFO(os.stat(path).st_mode)
    except OSError as error:
        raise _translated(error, path) from error
    return _open(path, os.O_RDWR if fifo else os.O_RDONLY)


def open_output(path: str) -> tuple[int | None, int]:
    """Our own read end of a stdout or stderr FIFO (None for what is not a FIFO) and the write end to hand on.
    Raises as `open_input`."""
    keeper: int | None = None
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):
            keeper = os.open(path, os.O_RDONLY | _FLAGS)
        return keeper, _open(path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        raise _translated(error, path) from error
    except ShimError:
        if keeper is not None:
            os.close(keeper)
        raise


def open_file(path: str) -> int:
    """A log file to append to, made with the directories above it if it is not there. Raises as `open_input`."""
    try:
        _make_directory(os.path.dirname(path))
    except OSError as error:
        raise _translated(error, path) from error
    return _open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _make_directory(path: str) -> None:
    """With those above it, all with the same mode (`os.makedirs` gives its mode to the last one only)."""
    if os.path.isdir(path):
        return
    _make_directory(os.path.dirname(path))
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o755)


def _open(path: str, flags: int) -> int:
    try:
        fd = os.open(path, flags | _FLAGS, 0o644)
    except OSError as error:
        raise _translated(error, path) from error
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidArgument(f"stdio {path}: is a directory")
    return fd


def _translated(error: OSError, path: str) -> ShimError:
    text = f"stdio {path}: {error.strerror}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(text)
    if error.errno in (errno.EISDIR, errno.EEXIST, errno.ENXIO, errno.ENAMETOOLONG, errno.ELOOP):
        return InvalidArgument(text)  # ENXIO: a Unix socket's file
    return Internal(text)
