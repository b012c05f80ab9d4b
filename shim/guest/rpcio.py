"""Streams fetched and fed by RPC, for runtimes that pass no streams: ReadStdout, ReadStderr, WriteStdin."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable

from shim import errors

# After the exit, while a background child holds the pipe: silence that counts as the end.
RPC_IDLE_S = 0.5

_MAX_READ = 4 * 1024 * 1024 - 4096


class _Readiness:
    """Wait for one descriptor with one waiter at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._loop = asyncio.get_running_loop()

    async def readable(self, timeout_s: float | None) -> bool:
        return await self._wait(self._loop.add_reader, self._loop.remove_reader, timeout_s)

    async def writable(self) -> bool:
        return await self._wait(self._loop.add_writer, self._loop.remove_writer, None)

    async def _wait(
        self,
        add: Callable[[int, Callable[[], None]], None],
        remove: Callable[[int], bool],
        timeout_s: float | None,
    ) -> bool:
        ready = self._loop.create_future()

        def on_ready() -> None:
            if not ready.done():
                ready.set_result(None)

        add(self._fd, on_ready)
        try:
            done, _ = await asyncio.wait([ready], timeout=timeout_s)
        finally:
            remove(self._fd)
        return bool(done)


class RpcOutput:
    """stdout or stderr fetched by ReadStdout/ReadStderr. Owns `fd`, the non-blocking read end.

    Nothing is read ahead: a process whose output nobody fetches stops at a full pipe, as on any pipe.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = asyncio.Lock()
        self._exited = asyncio.Event()
        self._closed = False
        self.ended = False  # somebody was told the end

    async def read(self, size: int) -> bytes:
        """Up to `size` bytes; b"" is the end: all writers have closed, or the process has ended and its
        children stay silent."""
        size = max(1, min(size, _MAX_READ))
        async with self._lock:
            try:
                while not self._closed:
                    try:
                        return os.read(self._fd, size)
                    except BlockingIOError:
                        pass
                    if not self._exited.is_set():
                        await self._readable_or_exited()
                    elif not await _Readiness(self._fd).readable(RPC_IDLE_S):
                        break
            except OSError as error:
                if error.errno != errno.EIO:  # EIO: nobody holds the other end of the pty
                    raise
            finally:
                if self._closed:
                    self._release()
        self.ended = True
        return b""

    async def _readable_or_exited(self) -> None:
        waits = [
            asyncio.ensure_future(_Readiness(self._fd).readable(None)),
            asyncio.ensure_future(self._exited.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    def on_exit(self) -> None:
        self._exited.set()

    def close(self) -> None:
        """Close now, or as soon as a read in flight has seen it."""
        self._closed = True
        self._exited.set()
        if not self._lock.locked():
            self._release()

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RpcInput:
    """stdin fed by WriteStdin. Owns `fd`, the non-blocking write end (or pty master)."""

    def __init__(self, fd: int, *, closable: bool) -> None:
        self._fd = fd
        self._closable = closable
        self._lock = asyncio.Lock()
        self._no_more = False

    async def write(self, data: bytes) -> int:
        """All of `data`, waiting for a slow reader; the bytes written (fewer if the reader went away)."""
        if self._no_more:
            raise errors.FailedPrecondition("stdin is closed")
        view, written = memoryview(data), 0
        async with self._lock:
            try:
                while written < len(view) and self._fd >= 0:
                    try:
                        written += os.write(self._fd, view[written:])
                    except BlockingIOError:
                        await _Readiness(self._fd).writable()
            except OSError as error:
                if error.errno not in (errno.EPIPE, errno.EIO):
                    raise
                raise errors.FailedPrecondition("the process has closed its stdin") from error
            finally:
                if self._no_more:
                    self._close()
        return written

    def end(self) -> None:
        """Close after what is being written. At once if nothing is; never waits. A terminal stays open."""
        if not self._closable:
            return
        self._no_more = True
        if not self._lock.locked():
            self._close()

    def close(self) -> None:
        self._no_more = True
        if not self._lock.locked():
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
