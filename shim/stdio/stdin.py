"""The stdin FIFO, opened for reading and writing, and when its input counts as ended.

The device gets an O_RDWR end: it is its own writer, so a client that goes away is a detach and never an end of input.
The input ends with CloseIO: the device is told (`eof`), reads the FIFO until it is empty and half-closes.

One client cannot call CloseIO. `ctr run` does so for an end of input that it meets after Create has returned; with a
short pipe as its stdin it has read, written and closed everything before that. Who closes the FIFO before the process
has started has said all it will ever say, and an O_RDWR end does not show that somebody left; inotify does. (A client
whose input is empty closes before our open and leaves no trace: that input stays open, as it does under runc.)
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

from shim.stdio.fifo import open_input

_libc = ctypes.CDLL(None, use_errno=True)

# <sys/inotify.h>
_IN_CLOSE_WRITE = 0x8
_EVENT = struct.Struct("iIII")  # wd, mask, cookie, length of the name: none, for a watch on a file
_EVENTS_SIZE = 64 * _EVENT.size


class Input:
    """`fd` is for the device, which gets its own copy of it. `watched`: notice a client that leaves."""

    def __init__(self, path: str, *, watched: bool) -> None:
        self._watch = _watch(path) if watched else None
        self._left = False
        try:
            self.fd = open_input(path)
        except BaseException:
            self.close()
            raise

    def client_left(self) -> bool:
        """Whether somebody has closed a write end since the open, which is still open itself."""
        while self._watch is not None and not self._left:
            try:
                events = os.read(self._watch, _EVENTS_SIZE)
            except BlockingIOError:
                break
            self._left = any(mask & _IN_CLOSE_WRITE for _, mask, _, _ in _EVENT.iter_unpack(events))
        return self._left

    def close(self) -> None:
        """Stop watching. Idempotent; `fd` is closed by whoever passed it on."""
        if self._watch is not None:
            os.close(self._watch)
            self._watch = None


def _watch(path: str) -> int | None:
    """A non-blocking inotify descriptor; None for what is no FIFO, and where the user has no watch left: then
    only CloseIO ends the input."""
    try:
        if not stat.S_ISFIFO(os.stat(path).st_mode):
            return None
    except OSError:
        return None  # the open that follows says it better
    fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        return None
    if _libc.inotify_add_watch(fd, os.fsencode(path), _IN_CLOSE_WRITE) < 0:
        os.close(fd)
        return None
    return fd
