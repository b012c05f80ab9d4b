"""Copying one stream between a descriptor of the host and an agent's RPCs.

A copy is a `vsock.api.Stream`, so that who has a stream need not know how its bytes travel. It owns its descriptor
and closes it at its end.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable

from shim.errors import Internal, ShimError
from shim.log import Log
from shim.vsock.api import StreamStat

# What one RPC moves: each costs milliseconds in an emulated guest, whatever it carries.
_CHUNK = 256 << 10
# A reader that has taken nothing for so long counts as gone for `OutputCopy.settled`.
_STUCK_S = 30.0


class _Copy(ABC):
    """A task that runs from `begin` to the stream's end or `close`."""

    host_port = 0  # none: nothing is passed

    def __init__(self, fd: int, log: Log) -> None:
        os.set_blocking(fd, False)
        self._fd, self._log = fd, log
        self._count = self._stalls = 0
        self._task: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()

    @abstractmethod
    async def _copy(self) -> None:
        """To the end of the stream; ShimError when the agent fails, OSError when the descriptor does."""

    @abstractmethod
    async def stat(self) -> StreamStat: ...

    @abstractmethod
    async def eof(self) -> bool: ...

    def begin(self) -> None:
        """Idempotent; nothing after `close`."""
        if self._task is None and not self._ended.is_set():
            self._task = asyncio.create_task(self._copy(), name=type(self).__name__)
            # Not in a `finally` of the task: one that is cancelled before it ran has none.
            self._task.add_done_callback(self._finish)

    def _finish(self, task: asyncio.Task[None]) -> None:
        self._release()
        if task.cancelled() or (error := task.exception()) is None:
            return
        tell = self._log.debug if isinstance(error, ShimError) else self._log.warning
        tell("stdio by RPC has ended", error=error, bytes=self._count)

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._ended.set()

    async def drained(self) -> StreamStat:
        await self._ended.wait()
        return await self.stat()

    def abandon(self) -> None:
        self.close()

    def close(self) -> None:
        if self._task is None:
            self._release()
        else:
            self._task.cancel()


class OutputCopy(_Copy):
    """stdout or stderr: what `read` (at most so many bytes, b"" is the end) gives goes to the descriptor.

    When that takes no more (a logger has died, a disk is full) the rest is read and thrown away, or the process
    would stop. `settled` is set at the end, or when the descriptor's reader has been stuck for `_STUCK_S`.
    """

    def __init__(self, read: Callable[[int], Awaitable[bytes]], fd: int, log: Log) -> None:
        super().__init__(fd, log)
        self._read = read
        self.settled = asyncio.Event()

    async def stat(self) -> StreamStat:
        return StreamStat(self._count, 0, self._stalls)

    async def eof(self) -> bool:
        return True

    async def _copy(self) -> None:
        try:
            while data := await self._read(_CHUNK):
                await self._write(data)
        except OSError as error:
            self._log.warning("output cannot be written and is thrown away", error=error)
            while await self._read(_CHUNK):
                pass

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                count = os.write(self._fd, view)
            except BlockingIOError:
                self._stalls += 1
                await self._room()
                continue
            self._count += count
            view = view[count:]

    async def _room(self) -> None:
        loop = asyncio.get_running_loop()
        stuck = loop.call_later(_STUCK_S, self.settled.set)
        room = asyncio.Event()
        loop.add_writer(self._fd, room.set)
        try:
            await room.wait()
        finally:
            loop.remove_writer(self._fd)
            stuck.cancel()

    def _release(self) -> None:
        super()._release()
        self.settled.set()


class InputCopy(_Copy):
    """stdin: what the descriptor gives goes to `write`, which returns how much of it was taken; then `at_end`.

    A FIFO's end is `eof` and nothing before: it is read until it is empty then. What is no FIFO ends by itself. The
    process not reading any more, the descriptor is closed, upon which a client's writing fails.
    """

    def __init__(
        self,
        write: Callable[[bytes], Awaitable[int]],
        at_end: Callable[[], Awaitable[None]],
        fd: int,
        log: Log,
    ) -> None:
        super().__init__(fd, log)
        self._write, self._at_end = write, at_end
        self._no_more = False
        self._news = asyncio.Event()  # there may be data, or there will be none

    async def stat(self) -> StreamStat:
        return StreamStat(0, self._count, self._stalls)

    async def eof(self) -> bool:
        self._no_more = True
        self._news.set()
        return True

    async def _copy(self) -> None:
        while True:
            self._news.clear()
            try:
                data = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                if self._no_more:
                    break
                await self._wait_for_news()
                continue
            if not data:
                break
            await self._pass_on(data)
        await self._at_end()

    async def _pass_on(self, data: bytes) -> None:
        while data:
            count = await self._write(data)
            if count <= 0:
                raise Internal("the agent takes no input and does not say why")
            self._count += count
            data = data[count:]

    async def _wait_for_news(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, self._news.set)
        try:
            await self._news.wait()
        finally:
            loop.remove_reader(self._fd)
