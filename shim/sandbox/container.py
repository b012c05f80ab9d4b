"""One container: its init process and its execs, and what may be asked of them. How they end is in `endings`.

`_lock` covers create, start and delete of the container. State, Wait, Kill, CloseIO and execs take no lock:
domain state changes on the event loop only, and `Process.advance` is one step."""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from shim import oci
from shim.agent.api import ProcessIds, StdioPorts
from shim.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ShimError, Unknown
from shim.log import Log
from shim.sandbox import bundle, transforms
from shim.sandbox.background import Background
from shim.sandbox.cgroup import Cgroup
from shim.sandbox.endings import KILLED, Endings
from shim.sandbox.events import (
    Emit,
    ExecAdded,
    ExecStarted,
    ExitStatus,
    TaskCreated,
    TaskDeleted,
    TaskStarted,
)
from shim.sandbox.guest import Guest, Limits
from shim.sandbox.process import Process
from shim.sandbox.request import CreateRequest
from shim.sandbox.states import Event, State, advance
from shim.sandbox.volumes import VolumeMaker
from shim.stdio.uri import Stdio


class Container:
    """Owned by a sandbox. Requests are methods (those about all of it are `cgroup`'s) that raise
    `errors.ShimError`; `vm_died` and `out_of_memory` is what it is told."""

    def __init__(
        self, request: CreateRequest, emit: Emit, background: Background, limits: Limits, log: Log
    ) -> None:
        self.id, self.request = request.id, request
        self.init = Process(ProcessIds(request.id), request.stdio, State.CREATING)
        self.execs: dict[str, Process] = {}
        self._emit, self._background, self._limits = emit, background, limits
        self._log = log.bind(container=request.id)
        self._lock = asyncio.Lock()
        self._guest: Guest | None = None
        self._made = AsyncExitStack()  # undoes what create has made
        self._endings = Endings(self.id, self.init, self.execs, emit=emit, limits=limits, log=self._log)
        self.cgroup = Cgroup(
            self.init,
            self.execs,
            self._endings,
            self._lock,
            booted=self._booted,
            emit=emit,
            background=background,
            limits=limits,
            log=self._log,
        )

    # -- create, start, delete -------------------------------------------------------------------------------

    async def create(
        self,
        boot: Callable[[Mapping[str, Any]], Awaitable[Guest]],
        pod: Mapping[str, Any] | None = None,
    ) -> int:
        """Make it in the guest; the pid that stands for it. `pod` is the spec of a sandbox without a pause container.
        On an error all of it is undone."""
        async with self._lock, AsyncExitStack() as stack:
            stack.callback(self.init.fail)
            spec = bundle.load(self.request.bundle)
            if pod is not None:
                bundle.join_pod(spec, pod)
            transforms.check_ids(spec)
            rootfs = bundle.rootfs_mounts(self.request.bundle, spec, self.request.rootfs)
            if skipped := transforms.host_hooks(spec):
                self._log.warning("hooks of the host are not run", hooks=",".join(skipped))
            guest = await boot(spec)
            await guest.capacity.claim(self.id, oci.section(spec, "linux", "resources"))
            stack.callback(guest.capacity.put_back, self.id, None)
            maker = VolumeMaker(guest.share, guest.disks, self.id, self._log)
            stack.push_async_callback(self._quietly, "remove volumes", maker.remove)
            volumes = await maker.make(self.request.bundle, spec, rootfs)
            guest_spec = transforms.guest_spec(
                spec,
                root=volumes.root,
                mounts=volumes.mounts,
                devices=volumes.devices,
                bundle=str(self.request.bundle),
                kind=transforms.container_kind(spec),
                own=transforms.own_namespaces(spec, self.id),
            )
            stack.callback(self.init.close_streams)
            ports = await self.init.attach(guest, self._limits, watch_stdin=True)
            stack.push_async_callback(self._remove_from_guest, guest)
            await guest.agent.create_container(
                self.id,
                guest_spec,
                volumes.storages,
                ports,
                sandbox_pidns=transforms.shares_pidns(spec),
                devices=volumes.agent_devices,
            )
            await self._end_unused_stdin(guest, self.init, ports)
            self._guest = guest
            self.init.advance(Event.CREATED)
            self._emit(
                TaskCreated(
                    self.id, str(self.request.bundle), self.request.rootfs, self.init.stdio, guest.pid
                )
            )
            self._background.spawn(self._endings.watch(self.init, guest), f"watch {self.id}")
            self._made = stack.pop_all()
            return guest.pid

    async def start(self) -> int:
        """Run the init process."""
        async with self._lock:
            guest = self._booted()
            self.init.advance(Event.START)
            try:
                await self._end_stdin(self.init, self.init.settle_stdin())
                await self._resize_now(guest, self.init)
                await guest.agent.start_container(self.id)
                self.init.begin_stdio()
            except BaseException:
                self.init.fail()
                raise
            self.init.advance(Event.STARTED)
            self._emit(TaskStarted(self.id, guest.pid))
            await self._resize_now(guest, self.init)
            return guest.pid

    async def delete(self) -> ExitStatus:
        """Remove it from guest and share. Only when it does not run; one that was never started is killed."""
        async with self._lock:
            if self.init.state is State.CREATED:
                await self._kill_created()
            advance(self.init.state, Event.DELETE)
            await self._made.aclose()
            for process in self.execs.values():
                process.fail()
                process.close_streams()
            await asyncio.gather(
                *(process.wait_streams_closed() for process in (self.init, *self.execs.values()))
            )
            self.init.advance(Event.DELETE)
            assert self.init.exit is not None
            self._emit(TaskDeleted(self.id, self.pid, self.init.exit))
            return self.init.exit

    async def _kill_created(self) -> None:
        self._endings.expect_kill(self.init)
        self.init.begin_stdio()  # its output has to end, see `Streams.exit_may_be_asked`
        try:
            await self._booted().agent.signal_process(self.init.ids, signals.SIGKILL, everyone=True)
            await asyncio.wait_for(self.init.wait(), self._limits.exec_exit_s)
        except (ShimError, TimeoutError) as error:
            self._log.warning("a container that was never started did not end when killed", error=error)
            self._endings.tell(self.init, KILLED)

    # -- execs -----------------------------------------------------------------------------------------------

    def add_exec(self, exec_id: str, stdio: Stdio, spec: Mapping[str, Any]) -> None:
        """Register a process; nothing is opened or started."""
        if not exec_id:
            raise InvalidArgument("exec id is empty")
        if exec_id in self.execs or exec_id == self.id:
            raise AlreadyExists(f"id {exec_id}: already exists")
        if self.init.state is State.CREATING:
            raise FailedPrecondition("container must be created: failed precondition")
        if self.init.state not in (State.CREATED, State.STARTING, State.RUNNING):
            state = "paused" if self.init.state is State.PAUSED else "stopped"
            raise Unknown(f"cannot exec in a {state} state")
        ids = ProcessIds(self.id, exec_id)
        process = transforms.guest_process(spec, terminal=stdio.terminal)
        self.execs[exec_id] = Process(ids, stdio, State.CREATED, process)
        self._emit(ExecAdded(self.id, exec_id))

    async def start_exec(self, exec_id: str) -> int:
        process = self.process(exec_id)
        if self.init.state is State.PAUSED:
            raise Unknown("OCI runtime exec failed: cannot exec in a paused container")
        if self.init.state is not State.RUNNING:
            raise FailedPrecondition(f"container {self.id} init process is not running: failed precondition")
        guest = self._booted()
        process.advance(Event.START)
        try:
            async with guest.starting:
                ports = await process.attach(guest, self._limits, watch_stdin=False)
                await guest.agent.exec_process(process.ids, process.spec, ports)
            process.begin_stdio()
            await self._end_unused_stdin(guest, process, ports)
            await self._end_stdin(process, process.settle_stdin())
        except BaseException:
            process.fail()
            raise
        process.advance(Event.STARTED)
        self._emit(ExecStarted(self.id, exec_id, guest.pid))
        self._background.spawn(self._endings.watch(process, guest), f"watch {self.id} {exec_id}")
        await self._resize_now(guest, process)
        return guest.pid

    async def delete_exec(self, exec_id: str) -> ExitStatus:
        process = self.process(exec_id)
        if process.state is State.CREATED:
            process.fail()
        process.advance(Event.DELETE)
        process.close_streams()
        del self.execs[exec_id]
        await process.wait_streams_closed()
        assert process.exit is not None
        return process.exit

    # -- while it runs ---------------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        """The VMM's pid; 0 before the sandbox has booted."""
        return self._guest.pid if self._guest else 0

    def process(self, exec_id: str) -> Process:
        """The init process for "" (or the container's own id), else the exec; NotFound."""
        if exec_id in ("", self.id):
            return self.init
        try:
            return self.execs[exec_id]
        except KeyError:
            raise NotFound(f"process does not exist {exec_id}: not found") from None

    async def kill(self, exec_id: str, signal: int, *, everyone: bool) -> None:
        process = self.process(exec_id)
        everyone = everyone and process is self.init
        if process.exit is not None:
            raise NotFound("process already finished: not found")
        if process.state is State.CREATING or (process is not self.init and process.state is State.CREATED):
            raise FailedPrecondition("process not created: failed precondition")
        await process.settled()  # a signal that overtakes the start would find nobody
        if process.exit is not None:
            raise NotFound("process already finished: not found")
        if signal == signals.SIGKILL:
            self._endings.expect_kill(process)
        try:
            await self._booted().agent.signal_process(process.ids, signal, everyone=everyone)
        except NotFound as error:
            raise NotFound("process already finished: not found") from error

    async def resize(self, exec_id: str, rows: int, columns: int) -> None:
        """A size that comes before the process does is kept for it."""
        process = self.process(exec_id)
        if process.exit is not None and (process.stdio.terminal or process is not self.init):
            raise Unknown("cannot resize a stopped container")
        if not process.stdio.terminal:
            return
        if process.state in (State.RUNNING, State.PAUSED):
            await self._booted().agent.resize_tty(process.ids, rows, columns)
        else:
            process.size = (rows, columns)

    def close_stdin(self, exec_id: str) -> None:
        """The client has written all of its input. Returns at once; see `Process.close_stdin`."""
        process = self.process(exec_id)
        self._background.spawn(
            self._end_stdin(process, process.close_stdin()), f"close stdin {self.id} {exec_id}"
        )

    def close_streams(self) -> None:
        """Give up the stdio of all its processes."""
        for process in (self.init, *self.execs.values()):
            process.close_streams()

    def out_of_memory(self) -> None:
        """The guest's OOM killer has ended one of its processes."""
        self._endings.out_of_memory()

    def vm_died(self) -> None:
        """Nothing runs any more: tell every exit now. What is being started fails by itself."""
        self._endings.vm_died()

    # -- small steps -----------------------------------------------------------------------------------------

    def _booted(self) -> Guest:
        if self._guest is None:
            raise FailedPrecondition("container must be created: failed precondition")
        return self._guest

    async def _end_stdin(self, process: Process, ended: Awaitable[bool]) -> None:
        """Through the stream, behind the last byte; by the agent if the device cannot. A terminal stays open."""
        told = await ended or process.stdio.terminal
        if not told and process.exit is None and (guest := self._guest) is not None:
            await self._quietly("close stdin", lambda: guest.agent.close_stdin(process.ids))

    async def _end_unused_stdin(self, guest: Guest, process: Process, ports: StdioPorts | None) -> None:
        if not process.stdio.stdin and not process.stdio.terminal:
            await self._quietly("end stdin", lambda: guest.agent.end_unused_stdin(process.ids, ports))

    async def _resize_now(self, guest: Guest, process: Process) -> None:
        """The size that was kept, if there is one."""
        size, process.size = process.size, None
        if size is not None and process.exit is None:
            await self._quietly("resize", lambda: guest.agent.resize_tty(process.ids, *size))

    async def _remove_from_guest(self, guest: Guest) -> None:
        if self._endings.without_vm:
            return
        try:
            await guest.agent.remove_container(self.id)
        except ShimError as error:
            # A container that could not be created is mostly not there.
            tell = self._log.debug if self._guest is None else self._log.warning
            tell("clean-up failed", step="remove container", error=error)

    async def _quietly(self, what: str, act: Callable[[], Awaitable[None]]) -> None:
        """A clean-up that fails is logged and hides nothing."""
        try:
            await act()
        except (ShimError, OSError) as error:
            self._log.warning("clean-up failed", step=what, error=error)
