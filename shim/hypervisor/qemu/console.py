"""The guest's serial console, read so that a guest that floods it costs next to nothing.

It comes through a pipe: QEMU writes byte by byte, and a socket accounts hundreds of bytes for each of them,
so that it would be full after a few lines. Reads are paced, and of each only some lines are told; when the
pipe is full, QEMU drops what the guest prints (it never waits for a console), so neither the guest nor we
wait for the other.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shim.children import Tail

_READ_SIZE = 65536  # a whole pipe
_PAUSE_S = 0.1
_LINES_PER_READ = 100


class Console:
    """A pipe and its reader. `on_line` gets up to 1000 lines a second, and how many were left out; `text` is
    the end of all that was printed."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._tail = Tail(self._tell)
        self._lines = 0
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closed = False
        self._listen()

    @property
    def text(self) -> str:
        return self._tail.text()

    @contextmanager
    def writer(self) -> Iterator[int]:
        """The end for QEMU to inherit, closed on our side afterwards. Once only."""
        try:
            yield self._writer
        finally:
            os.close(self._writer)
            self._writer = -1

    def close(self) -> None:
        """Take what is still in the pipe and close it. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._stop_listening()
        self._read()
        self._tail.finish()
        os.close(self._reader)
        if self._writer >= 0:
            os.close(self._writer)

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._reader, self._on_readable)

    def _stop_listening(self) -> None:
        self._loop.remove_reader(self._reader)
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _on_readable(self) -> None:
        self._stop_listening()
        if self._read():
            self._pause = self._loop.call_later(_PAUSE_S, self._listen)

    def _read(self) -> bool:
        """False at the end of the stream."""
        try:
            data = os.read(self._reader, _READ_SIZE)
        except BlockingIOError:
            return True
        self._lines = 0
        self._tail.feed(data)
        if self._lines > _LINES_PER_READ:
            self._on_line(f"({self._lines - _LINES_PER_READ} lines left out)")
        return bool(data)

    def _tell(self, line: str) -> None:
        self._lines += 1
        if self._lines <= _LINES_PER_READ:
            self._on_line(line)
