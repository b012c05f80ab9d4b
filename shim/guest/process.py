"""One process in a container: its streams, its end, and everybody who waits for that."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from shim.guest.reaper import exit_code
from shim.guest.runtime import Launched
from shim.guest.stdio import Stdio


class Process:
    """One that crun has made; `exec_id` "" is the container's init process."""

    def __init__(self, exec_id: str, launched: Launched, stdio: Stdio, on_exit: Callable[[], None]) -> None:
        """`stdio` is what it was launched with. `on_exit` is called once it has ended, before any waiter."""
        self.exec_id, self.pid, self.stdio = exec_id, launched.pid, stdio
        self._exited = launched.exited
        self._finished: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._terminated = False
        stdio.attach(launched.master)
        self._watcher = asyncio.create_task(self._watch(on_exit))

    async def _watch(self, on_exit: Callable[[], None]) -> None:
        status = await self._exited
        try:
            on_exit()
            await self.stdio.on_exit()
        finally:
            self._finished.set_result(self._code(status))

    def _code(self, status: int) -> int:
        if self._terminated and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return 128 + signal.SIGTERM
        return exit_code(status)

    async def wait(self) -> int:
        """The exit code, once the process has ended and its output is in the streams. Any number may wait."""
        return await asyncio.shield(self._finished)

    async def exited(self) -> None:
        """Until the process has ended, its output aside."""
        await asyncio.wait([self._exited])

    @property
    def ended(self) -> bool:
        """It is reaped: its pid may be another's."""
        return self._exited.done()

    @property
    def finished(self) -> bool:
        """Whether `wait` answers at once."""
        return self._finished.done()

    def signal(self, number: int) -> None:
        """Send a signal; one to a process that has ended is no error.

        The first process of a pid namespace is not killed by a signal it has no handler for. A SIGTERM that
        would thus get lost is delivered as what it means, the end of the container, and its exit code is the
        143 that any other process would show. (runc drops the signal; Kata's agent kills with code 137.)
        """
        if self.ended:
            return
        if number == signal.SIGTERM and not self.exec_id and _has_default_action(self.pid, number):
            self._terminated = True
            number = signal.SIGKILL
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return


def _has_default_action(pid: int, number: int) -> bool:
    """Whether a process neither handles, ignores nor blocks (to fetch it with sigwait) a signal."""
    sets = 0
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith(("SigBlk:", "SigIgn:", "SigCgt:")):
                    sets |= int(line.split()[1], 16)
    except (FileNotFoundError, ProcessLookupError):
        return False
    return not sets >> (number - 1) & 1
