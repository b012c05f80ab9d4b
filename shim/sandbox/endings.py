"""How the processes of one container end, and the order in which that is told.

containerd's consumers rely on it: a process's start comes before its exit, the exits of execs before the
init's, each exit once, and news of the OOM killer before the exit that it has made. Every exit goes through
`tell`, which tells it once; `watch` keeps the order. An exit is told when the process has ended and its output is
where it belongs, or does not move any more."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress

from shim.errors import ShimError, Unavailable
from shim.log import Log
from shim.sandbox.events import Emit, TaskExited, TaskOutOfMemory
from shim.sandbox.guest import Guest, Limits
from shim.sandbox.process import Process
from shim.sandbox.states import State
from shim.vsock.api import StreamStat

KILLED = 128 + signal.SIGKILL
# Nobody knows how it ended.
UNKNOWN = 255
# A guest may tell of the OOM killer as often as it likes, but containerd is told once in so long.
_OOM_APART_S = 1.0


class Endings:
    """`execs` is the container's own table, seen as it changes."""

    def __init__(
        self,
        container_id: str,
        init: Process,
        execs: Mapping[str, Process],
        *,
        emit: Emit,
        limits: Limits,
        log: Log,
    ) -> None:
        self._container_id, self._init, self._execs = container_id, init, execs
        self._emit, self._limits, self._log = emit, limits, log
        self._vm_died = asyncio.Event()
        self._pid = 0
        self.oom_kills = 0  # told of so far
        self._oom_told_at = 0.0
        self._oom = asyncio.Event()

    @property
    def without_vm(self) -> bool:
        """The VM has died: there is nobody left to ask."""
        return self._vm_died.is_set()

    async def watch(self, process: Process, guest: Guest) -> None:
        """Until `process` has ended and its output has arrived; then tell it. One watcher for each
        process."""
        self._pid = guest.pid
        process.code = code = await self._exit_code(process, guest)
        await process.settled()
        if process.exit is not None:
            return  # told already, or it never ran
        drained = await process.drain(self._limits)
        if code == KILLED and not process.to_be_killed:
            await self._await_out_of_memory()
        if process is self._init:
            await self._outlive_execs(guest)
            self._end_execs()
        counters = await process.counters()  # while they can still be had: Delete comes right after the exit
        self.tell(process, code)
        self._log.info(
            "process has ended",
            exec=process.ids.exec_id,
            code=code,
            **{name: _bytes(stat) for name, stat in counters.items()},
            stalls=sum(stat.stalls for stat in counters.values()),
            drained=drained,
        )
        await process.see_off_output(self._limits, drained=drained)

    def tell(self, process: Process, code: int) -> None:
        """It has ended with `code`, unless another one is known: answer its waiters and publish that, the first
        time."""
        if process.exit is None:
            status = process.finish(code if process.code is None else process.code)
            name = process.ids.exec_id or self._container_id
            self._emit(TaskExited(self._container_id, name, self._pid, status))

    def expect_kill(self, process: Process) -> None:
        """SIGKILL is about to be sent: an exit code that says so needs no other reason. With the init process
        all the others go."""
        for victim in (process, *self._execs.values()) if process is self._init else (process,):
            victim.to_be_killed = True

    def out_of_memory(self) -> None:
        """The OOM killer has ended one of the container's processes. Nothing is told behind the last exit."""
        now = asyncio.get_running_loop().time()
        if self._init.exit is None and (not self._oom.is_set() or now - self._oom_told_at >= _OOM_APART_S):
            self.oom_kills += 1
            self._oom_told_at = now
            self._oom.set()
            self._emit(TaskOutOfMemory(self._container_id))

    async def _await_out_of_memory(self) -> None:
        """Nobody asked for this kill. Our agent has told by now if it was the OOM killer; the genuine one may do
        so a moment later."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._limits.oom_grace_s):
                await self._oom.wait()

    def vm_died(self) -> None:
        """Nothing runs any more: tell it all at once. What is being created or started fails by itself."""
        self._vm_died.set()
        self._end_execs()
        if self._init.state in (State.CREATED, State.RUNNING, State.PAUSED):
            self.tell(self._init, KILLED)

    async def _exit_code(self, process: Process, guest: Guest) -> int:
        await process.exit_may_be_asked()
        try:
            return await guest.agent.wait_process(process.ids)
        except ShimError as error:
            if process.exit is None:
                self._log.warning("lost track of a process", exec=process.ids.exec_id, error=error)
            if isinstance(error, Unavailable):
                try:
                    async with asyncio.timeout(self._limits.post_mortem_s):
                        await self._vm_died.wait()
                    return KILLED
                except TimeoutError:
                    pass
            return UNKNOWN

    async def _outlive_execs(self, guest: Guest) -> None:
        """The guest's kernel has killed the execs with the init of their pid namespace, or else (a shared
        one) we do."""
        if await self._execs_ended():
            return
        self.expect_kill(self._init)
        try:
            await guest.agent.signal_process(self._init.ids, signal.SIGKILL, everyone=True)
        except ShimError as error:
            self._log.warning("cannot kill what the container left behind", error=error)
        if not await self._execs_ended():
            self._log.warning("execs have not ended with their container")

    async def _execs_ended(self) -> bool:
        """Until all execs have ended; False if some have not after `exec_exit_s`."""
        try:
            async with asyncio.timeout(self._limits.exec_exit_s):
                for process in list(self._execs.values()):
                    if process.live:
                        await process.wait()
        except TimeoutError:
            return False
        return True

    def _end_execs(self) -> None:
        for process in self._execs.values():
            if process.state is State.CREATED:
                process.fail()  # it can never be started now
            elif process.state is State.RUNNING:
                self.tell(process, KILLED)


def _bytes(stat: StreamStat) -> int:
    """Of a standard stream: each goes one way."""
    return stat.rx + stat.tx
