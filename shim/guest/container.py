"""A container in the guest: its bundle, its init process, its execs, and its end.

One lock per container orders its crun calls. Nothing waits for a process or a stream under it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal

from shim import errors
from shim.guest import cgroup
from shim.guest.process import Process
from shim.guest.runtime import Runtime, write_json
from shim.guest.spec import inherit_process
from shim.guest.stdio import Stdio
from shim.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# How long a killed container's init process may take to end before crun is told to remove it anyway.
_KILL_S = 10.0
# Ended execs whose exit code can still be asked for; the oldest are forgotten beyond that.
_REMEMBERED_EXECS = 32
# The same for those whose output is not read to its end; there are runtimes that never read what nobody wants.
_UNREAD_EXECS = 256


class Container:
    """`create` first; after it failed, or at the end, `destroy`."""

    def __init__(
        self,
        container_id: str,
        bundle: str,
        spec: dict[str, Any],
        *,
        runtime: Runtime,
        on_oom: Callable[[], None],
        log: Log,
    ) -> None:
        """`spec` is the runtime spec object to run, complete; its cgroupsPath is normalised."""
        self.id = container_id
        self.spec = spec
        self.cgroup: str = spec["linux"]["cgroupsPath"]
        self.storages: list[str] = []
        self.bundle = bundle
        self._runtime, self._on_oom, self._log = runtime, on_oom, log
        self._lock = asyncio.Lock()
        self._init: Process | None = None
        self._execs: dict[str, Process] = {}
        self._oom: cgroup.OomWatch | None = None
        self._created = self._removed = self._paused = False

    async def create(self, stdio: Stdio) -> None:
        """Write the bundle and create the init process, which waits for `start`. Owns `stdio`."""
        async with self._lock:
            args = self.spec["process"]["args"]
            try:
                if self._removed:  # while its streams or its storages were waited for
                    raise errors.FailedPrecondition(f"container {self.id} was removed")
                os.makedirs(self.bundle, mode=0o700, exist_ok=True)  # Kata mounts a disk's rootfs there
                write_json(f"{self.bundle}/config.json", self.spec)
                self._created = True
                launched = await self._runtime.create(
                    self.id, self.bundle, args, stdio.open(), terminal=stdio.terminal
                )
            except BaseException:
                stdio.abandon()
                raise
            self._init = Process("", launched, stdio, self._on_init_exit)
            self._oom = cgroup.OomWatch(self.cgroup, self._on_oom)

    async def start(self) -> None:
        """Let the init process execute its program."""
        async with self._lock:
            if self.init.ended:
                raise errors.FailedPrecondition(f"container {self.id} has ended")
            await self._runtime.start(self.id, hooks=bool(self.spec.get("hooks")))

    async def exec(self, exec_id: str, process: dict[str, Any], stdio: Stdio) -> Process:
        """Start another process in the container. Owns `stdio`; on failure the id stays free."""
        if not exec_id or exec_id == self.id:
            stdio.abandon()
            raise errors.InvalidArgument(f"exec id {exec_id!r} names the init process")
        async with self._lock:
            try:
                known = self._execs.get(exec_id)
                if known is not None and not known.finished:
                    raise errors.AlreadyExists(f"process {exec_id} exists in container {self.id}")
                if self.init.ended:
                    raise errors.FailedPrecondition(f"container {self.id} has ended")
                if self._paused:  # crun would be frozen half-way
                    raise errors.FailedPrecondition(f"container {self.id} is paused")
                inherit_process(process, self.spec["process"])
                launched = await self._runtime.exec(self.id, process, stdio.open())
            except BaseException:
                stdio.abandon()
                raise
            if known is not None:
                self._forget_exec(exec_id)
            self._forget_old_execs()
            self._execs[exec_id] = Process(exec_id, launched, stdio, self._check_oom)
            return self._execs[exec_id]

    def _forget_old_execs(self) -> None:
        for ended, remembered in ((True, _REMEMBERED_EXECS), (False, _UNREAD_EXECS)):
            execs = self._execs.items()
            old = [key for key, process in execs if process.finished and process.stdio.ended is ended]
            for key in old[: max(0, len(old) - remembered + 1)]:
                self._forget_exec(key)

    def _forget_exec(self, exec_id: str) -> None:
        self._execs.pop(exec_id).stdio.forget()

    @property
    def init(self) -> Process:
        if self._init is None:
            raise errors.FailedPrecondition(f"container {self.id} is not created yet")
        return self._init

    def process(self, exec_id: str) -> Process:
        """The process named by an RPC: "" and the container's id are the init process."""
        if exec_id in ("", self.id):
            return self.init
        try:
            return self._execs[exec_id]
        except KeyError:
            raise errors.NotFound(f"no process {exec_id} in container {self.id}") from None

    def signal(self, exec_id: str, number: int) -> None:
        """Send a signal to one process; SIGKILL to the init process is one to all of the container."""
        if not 0 <= number < signal.NSIG:
            raise errors.InvalidArgument(f"no signal {number}")
        process = self.process(exec_id)
        if number == signal.SIGKILL and process is self._init:
            cgroup.kill(self.cgroup)
        process.signal(number)

    async def pause(self) -> None:
        """Freeze it: a process that is just being started is in it or is not there yet."""
        async with self._lock:
            if self.init.ended:
                raise errors.FailedPrecondition(f"container {self.id} has ended")
            await cgroup.freeze(self.cgroup)
            self._paused = True

    async def resume(self) -> None:
        async with self._lock:
            cgroup.thaw(self.cgroup)
            self._paused = False

    async def update(self, resources: dict[str, Any]) -> None:
        """Change its limits; `resources` are the runtime spec's."""
        async with self._lock:
            if self.init.ended:
                raise errors.FailedPrecondition(f"container {self.id} has ended")
            await self._runtime.update(self.id, resources)

    async def set_limits(self, files: dict[str, str]) -> None:
        """Limits of cgroup v2, by their files, in this order."""
        async with self._lock:
            if self.init.ended:
                raise errors.FailedPrecondition(f"container {self.id} has ended")
            for name, value in files.items():
                cgroup.set_limit(self.cgroup, name, value)

    def processes(self) -> list[tuple[int, str]]:
        """(pid, exec id or "") of all that runs in it, the init process first."""
        names = {process.pid: name for name, process in self._execs.items() if not process.ended}
        pids = cgroup.processes(self.cgroup)
        return [(pid, names.get(pid, "")) for pid in sorted(pids, key=lambda pid: pid != self.init.pid)]

    def _check_oom(self) -> None:
        if self._oom is not None:
            self._oom.check()

    def _on_init_exit(self) -> None:
        self._check_oom()
        # With a pid namespace of its own nobody is left; in a shared one the others are ended here.
        cgroup.kill(self.cgroup)

    async def destroy(self, timeout_s: float = 0.0) -> None:
        """Kill what runs and remove all traces but the bundle's directory. Idempotent; raises the first error after
        doing all it can."""
        self._removed = True
        if self._init is not None:
            self.signal("", signal.SIGKILL)
            try:
                await asyncio.wait_for(self._init.exited(), timeout_s or _KILL_S)
            except TimeoutError:
                self._log.warning("init process does not end", container=self.id, pid=self._init.pid)
        async with self._lock:
            try:
                if self._created:
                    await self._runtime.delete(self.id, self._ended_in())
                    self._created = False
            finally:
                self._close()

    def _ended_in(self) -> str:
        """See `Runtime.delete`."""
        ended = self._init is not None and self._init.ended and not self.spec.get("hooks")
        return cgroup.ROOT + self.cgroup if ended else ""

    def _close(self) -> None:
        if self._oom is not None:
            self._oom.close()
            self._oom = None
        for process in [*self._execs.values(), *([self._init] if self._init else [])]:
            process.stdio.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.bundle}/config.json")
