"""Logger programs (`binary://`): one gets a process's output from pipes whose write ends the device has.

The contract is containerd's (core/runtime/v2/logging, cmd/containerd-shim-runc-v2/process/io.go):

    fd 3, 4       stdout and stderr to read, to their end
    fd 5          the program closes it when it is ready (binary-v2: it writes a byte first)
    environment   CONTAINER_ID and CONTAINER_NAMESPACE, nothing else
    arguments     the URI's query: key, value, key, value ...

The end of its pipes is the end of its work; one that goes on after Delete gets SIGTERM, then SIGKILL. It does not die
with us, so that what is in its pipes is not lost with a shim that crashes: it is in the record for `delete` to end.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from shim.children import Child, spawn_with_fds
from shim.errors import DeadlineExceeded, Internal
from shim.log import Log
from shim.record import LOGGER, Record, exiting
from shim.stdio.uri import Logger

_START_S = 10.0
# After the end of its pipes, then after SIGTERM. CRI gives Delete 10 s for everything.
_DRAIN_S, _TERM_S = 6.0, 2.0


class LoggerProcess:
    """One that is ready. `stdout` and `stderr` are the write ends of its pipes, for the caller to close."""

    def __init__(self, child: Child, stdout: int, stderr: int, record: Record, log: Log) -> None:
        self.stdout, self.stderr = stdout, stderr
        self._child, self._record, self._log = child, record, log
        self._ending: asyncio.Task[None] | None = None
        self.watch = asyncio.create_task(self._forget(), name=f"logger {child.pid}")

    async def _forget(self) -> None:
        status = await self._child.wait()
        self._record.forget_process(self._child.pid)
        if status and self._ending is None:
            self._log.warning(
                "a logger has failed, what it has not read is lost", error=self._child.failure()
            )

    def end(self) -> None:
        """Its pipes have ended or are about to: see to it that it ends, too. Idempotent."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(), name=f"end of logger {self._child.pid}")

    async def _end(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                await self._child.wait()
        if self._child.status is None:
            self._log.warning("a logger does not end by itself", program=self._child.argv[0])
            await self._child.terminate(_TERM_S)

    async def wait(self) -> None:
        """Until it has ended and is forgotten."""
        await asyncio.shield(self.watch)


class Loggers:
    """The loggers of one sandbox."""

    def __init__(self, record: Record, log: Log) -> None:
        self._record, self._log = record, log
        self._running: set[LoggerProcess] = set()

    async def start(self, logger: Logger, container_id: str) -> LoggerProcess:
        """Run it and wait until it is ready. NotFound without such a program, DeadlineExceeded for one that is not
        ready in time, Internal for one that fails; nothing of it is left then."""
        reads, writes = zip(*(os.pipe() for _ in range(3)), strict=True)
        stdout, stderr, ready = writes[0], writes[1], reads[2]
        environment = {"CONTAINER_ID": container_id, "CONTAINER_NAMESPACE": self._record.namespace}
        try:
            try:
                fds = {3: reads[0], 4: reads[1], 5: writes[2]}
                child = spawn_with_fds((logger.program, *logger.args), fds, environment)
            finally:
                for fd in (reads[0], reads[1], writes[2]):
                    os.close(fd)
            try:
                self._record.add_process(LOGGER, child.pid)
                await _until_ready(child, ready, byte=logger.sends_byte)
            except BaseException:
                await asyncio.shield(child.kill())
                self._record.forget_process(child.pid)
                raise
        except BaseException:
            os.close(stdout)
            os.close(stderr)
            raise
        finally:
            os.close(ready)
        started = LoggerProcess(child, stdout, stderr, self._record, self._log)
        self._running.add(started)
        started.watch.add_done_callback(lambda _: self._running.discard(started))
        return started

    async def aclose(self) -> None:
        """The VM and its device are gone: until every logger is, too."""
        for logger in list(self._running):
            logger.end()
        await asyncio.gather(*(logger.wait() for logger in list(self._running)))


async def _until_ready(child: Child, fd: int, *, byte: bool) -> None:
    loop = asyncio.get_running_loop()
    said = asyncio.Event()
    os.set_blocking(fd, False)
    loop.add_reader(fd, said.set)
    waits = [asyncio.create_task(said.wait()), asyncio.create_task(child.wait())]
    try:
        done, _ = await asyncio.wait(waits, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
    finally:
        loop.remove_reader(fd)
        for wait in waits:
            wait.cancel()
    name = child.argv[0]
    if not done:
        raise DeadlineExceeded(f"logger {name}: not ready after {_START_S:g} s")
    if said.is_set() and os.read(fd, 1):
        return
    if child.status is not None or exiting(child.pid):
        await child.wait()
        raise Internal(f"logger {name}: has ended before it was ready: {child.failure()}")
    if byte:
        raise Internal(f"logger {name}: has closed fd 5 without a byte")
