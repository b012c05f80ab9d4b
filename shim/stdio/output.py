"""An output FIFO seen from our side: the read end that we keep, and a writer for a reader who comes late.

A client opens its end without hurry, and its open waits for a writer. The device, which is the writer, may be gone by
then: the process was short. So, from the end of the output on, a FIFO that nobody has opened for reading keeps a writer
of ours; whoever opens it then reads what there is and sees the end at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import sys
import termios

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_FIRST_LOOK_S = 0.01
_LAST_LOOK_S = 0.25


class OutputFifo:
    """Owns `fd`, a read end, which exists from before the device's write end until `close`."""

    def __init__(self, fd: int) -> None:
        self._fd, self._writer = fd, -1

    def unread(self) -> int:
        """Bytes that nobody has read yet."""
        if self._fd < 0:
            return 0
        return int.from_bytes(fcntl.ioctl(self._fd, termios.FIONREAD, bytes(4)), sys.byteorder)

    async def until_opened(self) -> None:
        """The device has closed its end. Returns once somebody has opened the FIFO for reading, or at `close`."""
        if self._fd < 0:
            return
        self._open_writer()
        pause = _FIRST_LOOK_S
        while self._writer >= 0 and not self._others_read():
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LAST_LOOK_S)
        self._close_writer()

    def out_of_reach(self) -> bool:
        """Whether nobody reads it or ever will: it has no reader but us, and no name by which one could open it."""
        if self._fd < 0 or os.fstat(self._fd).st_nlink:
            return False
        return not self.has_reader()

    def has_reader(self) -> bool:
        """Whether somebody but us has it open for reading, or waits for a writer in order to. Without a reader it must
        not matter that a write of the device's fails meanwhile."""
        self._open_writer()
        try:
            return self._others_read()
        finally:
            self._close_writer()

    def _open_writer(self) -> None:
        self._writer = os.open(f"/proc/self/fd/{self._fd}", os.O_WRONLY | _FLAGS)

    def _others_read(self) -> bool:
        """Whether there is a reader besides us. Our own end is away for a moment; the writer keeps what is in the
        FIFO."""
        os.close(self._fd)
        # Should there be no descriptor for the next: by `close` the number may be another file's.
        self._fd = -1
        poll = select.poll()
        poll.register(self._writer, 0)
        alone = bool(poll.poll(0))  # POLLERR: a writer without any reader
        self._fd = os.open(f"/proc/self/fd/{self._writer}", os.O_RDONLY | _FLAGS)
        return not alone

    def _close_writer(self) -> None:
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        """Idempotent."""
        self._close_writer()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
