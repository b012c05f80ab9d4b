"""Our side of one stdin FIFO: when its input counts as ended.

1. after CloseIO: the device reads the FIFO until it is empty, then half-closes;
2. when every writer is gone, as long as we hold no write end ourselves.

For an init process the write end is taken at Start, not at Create. `ctr run` calls CloseIO only for an end of
input that it meets after Create has returned; with a short pipe as its stdin it has read, written and closed
everything before that. A client that has closed its end before Start has said all it will ever say, so rule 2
gives the process its end of input. From Start on a client that vanishes has detached, and the process keeps
waiting. (A client whose input is empty closes before our open and leaves no trace: that input stays open, as
it does under runc.)"""

from __future__ import annotations

import os
import select

from shim.stdio.fifo import hold_input, open_input


class Input:
    """The ends of a stdin FIFO that we hold. `reader` is for the device, which gets its own copy of it."""

    def __init__(self, path: str, *, hold: bool) -> None:
        self._path = path
        self._reader: int | None = open_input(path)
        self._writer = hold_input(path) if hold else None

    @property
    def reader(self) -> int:
        """The read end; only until the first of the calls below."""
        assert self._reader is not None
        return self._reader

    def hold(self) -> bool:
        """Keep the input from ending with its client. False if the client has come and gone already: then the
        input has ended. Idempotent."""
        if self._reader is None:
            return True
        ended = self._writer is None and _writers_gone(self._reader)
        if self._writer is None and not ended:
            self._writer = hold_input(self._path)
        os.close(self._reader)
        self._reader = None
        return not ended

    def release(self) -> None:
        """Close our ends: the process or its input has ended. Idempotent."""
        for fd in (self._reader, self._writer):
            if fd is not None:
                os.close(fd)
        self._reader = self._writer = None


def _writers_gone(fifo: int) -> bool:
    """Whether the FIFO had a writer since it was opened, and has none any more (Linux fs/pipe.c,
    pipe_poll)."""
    poll = select.poll()
    poll.register(fifo, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
