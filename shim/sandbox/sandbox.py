"""The sandbox: one VM and its containers, from the first Create to Shutdown."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shim import oci
from shim.agent.api import ContainerStats
from shim.errors import AlreadyExists, FailedPrecondition, NotFound, ShimError, Unavailable
from shim.log import Log
from shim.record import Record
from shim.sandbox import bundle
from shim.sandbox.background import Background
from shim.sandbox.container import Container
from shim.sandbox.endings import KILLED, UNKNOWN
from shim.sandbox.events import Emit, ExitStatus
from shim.sandbox.guest import Guest, Limits
from shim.sandbox.machine import Machine
from shim.sandbox.parts import SandboxSettings
from shim.sandbox.request import CreateRequest

# Linux: __NEW_UTS_LEN
_MAX_HOSTNAME = 64
# Between two news of the OOM killer: a guest that tells of it without end shall not keep the shim busy.
_OOM_APART_S = 0.02


class Sandbox:
    """Everything a shim serves. The first container boots the VM, which `make_machine` makes by that
    container's spec (or raises why it cannot); a boot that failed is not tried again. Only when the VM was to
    be restored from a snapshot, it is asked once more, for one that boots (True); if that does better, the snapshot
    is rejected.

    Create, start and delete run to their end even if the caller goes away; State and the like only look.
    """

    def __init__(
        self,
        sandbox_id: str,
        make_machine: Callable[[Mapping[str, Any], bool], Machine],
        record: Record,
        emit: Emit,
        *,
        limits: Limits,
        log: Log,
    ) -> None:
        self.id = sandbox_id
        self.containers: dict[str, Container] = {}
        self._make_machine, self._record, self._emit = make_machine, record, emit
        self._limits, self._log = limits, log
        self._background = Background(log)
        self._creating: dict[str, asyncio.Task[int]] = {}
        self._machine: Machine | None = None
        self._boot: asyncio.Task[Guest] | None = None
        self._oom_watch: asyncio.Task[None] | None = None
        self._running = asyncio.Event()
        self._closed = False
        self._reserved: Mapping[str, Any] | None = None
        self._ended = asyncio.Event()
        self._idle_since = time.monotonic()
        self.used = False  # somebody has asked for a container
        self.started_at_ns = 0  # when it was up, since the epoch
        self.exit: ExitStatus | None = None

    def container(self, container_id: str) -> Container:
        """NotFound in the words of runc's shim."""
        try:
            return self.containers[container_id]
        except KeyError:
            raise NotFound("container not created: not found") from None

    @property
    def machine(self) -> Machine | None:
        """The VM of now; None before the first container."""
        return self._machine

    @property
    def idle_s(self) -> float:
        """How long there has been no container; 0 for a sandbox that is reserved."""
        in_use = self.containers or self._reserved is not None
        return 0.0 if in_use else time.monotonic() - self._idle_since

    async def boot_early(self, spec: Mapping[str, Any]) -> None:
        """Begin to boot before the container with this spec is asked for; returns when the guest runs, long
        before it is up, or when it never will. What goes wrong is told by the first Create."""
        running = self._background.spawn(self._running.wait(), "running")
        await asyncio.wait([self._begin_boot(spec), running], return_when=asyncio.FIRST_COMPLETED)
        running.cancel()

    async def create(self, request: CreateRequest) -> int:
        """Make a container, with the VM if it is the first; the VMM's pid. While this runs the container is
        known and in state CREATING; when it fails it is forgotten."""
        if self._closed:
            raise Unavailable("the sandbox is shutting down")
        if request.id in self.containers:
            raise AlreadyExists(f"id {request.id}: already exists")
        self.used = True
        container = Container(request, self._emit, self._background, self._limits, self._log)
        self.containers[request.id] = container
        task = self._background.spawn(self._create(container), f"create {request.id}")
        self._creating[request.id] = task
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by `delete`: the caller of Create has given up and learns nothing new
                self._forget(container)  # a task that was cancelled before it ran has not
                raise NotFound("container not created: deleted while it was being created") from None
            raise

    async def _create(self, container: Container) -> int:
        async def booted(spec: Mapping[str, Any]) -> Guest:
            guest = await self._booted(spec)
            self._record.set_container(container.id, guest.pid)  # before there is anything of it
            return guest

        try:
            return await container.create(booted, self._reserved)
        except BaseException:
            self._forget(container)
            raise
        finally:
            self._creating.pop(container.id, None)

    def _forget(self, container: Container) -> None:
        if self.containers.get(container.id) is container:
            del self.containers[container.id]
            self._idle_since = time.monotonic()
            self._creating.pop(container.id, None)
            try:
                self._record.forget_container(container.id)
            except OSError as error:
                self._log.warning("the record names a container that is gone", id=container.id, error=error)

    async def start(self, container_id: str, exec_id: str) -> int:
        container = self.container(container_id)
        work = container.start_exec(exec_id) if exec_id else self._start(container)
        return await self._background.finish(work, f"start {container_id} {exec_id}")

    async def _start(self, container: Container) -> int:
        if self._machine is not None and container.pid:
            await self._machine.rescan_network()
        return await container.start()

    async def delete(self, container_id: str, exec_id: str) -> tuple[int, ExitStatus]:
        """The pid and exit status of what was deleted. A container that is being created is given up: its
        Create is cancelled and undone, and this raises NotFound."""
        container = self.container(container_id)
        if exec_id:
            return container.pid, await container.delete_exec(exec_id)
        if (creating := self._creating.get(container_id)) is not None:
            creating.cancel()
            await asyncio.wait([creating])
            self.container(container_id)
        return await self._background.finish(self._delete(container), f"delete {container_id}")

    async def _delete(self, container: Container) -> tuple[int, ExitStatus]:
        status = await container.delete()
        self._forget(container)
        return container.pid, status

    # -- a sandbox for itself (containerd's Sandbox API) -----------------------------------------------------

    def reserve(self, spec: Mapping[str, Any]) -> None:
        """The sandbox is to be there without containers, shaped by `spec`, until `aclose`."""
        if self.used or self._closed:
            raise AlreadyExists(f"sandbox {self.id}: already exists")
        self.used, self._reserved = True, spec

    async def boot(self) -> int:
        """Boot a reserved sandbox; the VMM's pid. Runs to its end even if the caller goes away."""
        if self._reserved is None:
            raise NotFound(f"sandbox {self.id}: not created: not found")
        if self._closed:
            raise FailedPrecondition(f"sandbox {self.id} is stopped: failed precondition")
        return (await self._booted(self._reserved)).pid

    @property
    def pid(self) -> int:
        """The VMM's while the sandbox is up, else 0."""
        return guest.pid if (guest := self._up()) else 0

    async def ping(self) -> None:
        """Unavailable if the guest is not up, or its agent does not answer."""
        if (guest := self._up()) is None:
            raise Unavailable(f"sandbox {self.id} is not up")
        await guest.agent.check()

    async def stats(self) -> Sequence[ContainerStats]:
        """What each of its containers uses that runs, or has run."""
        asked = (item.cgroup.stats() for item in list(self.containers.values()) if item.pid)
        return await asyncio.gather(*asked)

    async def wait(self) -> ExitStatus:
        """Until the sandbox has ended: code 0 if it was asked to, 137 if it died, 255 if it never came up."""
        await self._ended.wait()
        assert self.exit is not None
        return self.exit

    def _up(self) -> Guest | None:
        if self._boot is None or not self.started_at_ns or self._ended.is_set():
            return None
        return self._boot.result()

    def _end(self, code: int) -> None:
        if self.exit is None:
            self.exit = ExitStatus(code, time.time_ns())
            self._ended.set()

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self, *, now: bool = False) -> bool:
        """Whether it is to end: if there are no containers and it is not reserved, or `now` in any case. From then on
        it takes no more; `aclose` ends it."""
        if not now and (self.containers or self._reserved is not None):
            return False
        self._closed = True
        return True

    async def aclose(self) -> None:
        """End everything: processes count as killed, the VM and its companions go. Idempotent."""
        self._closed = True
        self._end(0)
        for container in self.containers.values():
            container.vm_died()
        if self._boot is not None and not self._boot.done():
            self._boot.cancel()
            await asyncio.wait([self._boot])
        if self._oom_watch is not None:
            self._oom_watch.cancel()
        if self._machine is not None:
            await self._machine.stop()
        await self._background.aclose()
        for container in self.containers.values():
            container.close_streams()

    # -- the VM ----------------------------------------------------------------------------------------------

    async def _booted(self, spec: Mapping[str, Any]) -> Guest:
        """The booted guest; `spec` is of the container that wants it and shapes the sandbox if it is the
        first."""
        guest = await asyncio.shield(self._begin_boot(spec))
        if self._machine is None or self._machine.died.is_set():
            raise Unavailable(f"the sandbox has died: {self._machine.reason if self._machine else 'no VM'}")
        return guest

    def _begin_boot(self, spec: Mapping[str, Any]) -> asyncio.Task[Guest]:
        if self._boot is None:
            self._boot = self._background.spawn(self._boot_and_watch(spec), "boot")
        return self._boot

    async def _boot_and_watch(self, spec: Mapping[str, Any]) -> Guest:
        try:
            settings = SandboxSettings(
                sandbox_id=self.id,
                hostname=(oci.text(spec, "hostname") or self.id)[:_MAX_HOSTNAME],
                dns=bundle.resolv_conf(spec),
                shared_pidns=spec is self._reserved and oci.namespace_path(spec, "pid") is not None,
                cgroups_path=oci.text(oci.section(spec, "linux"), "cgroupsPath"),
                **({} if (size := bundle.shm_bytes(spec)) is None else {"shm_bytes": size}),
            )
            machine = self._machine = self._make_machine(spec, False)
            try:
                guest = await machine.start(settings, self._running.set)
            except ShimError as error:
                if not machine.may_boot:
                    raise
                self._log.warning("cannot start from the template, the VM boots", error=error)
                restored, machine = machine, self._make_machine(spec, True)
                self._machine = machine
                guest = await machine.start(settings, self._running.set)
                if restored.snapshot_at_fault:
                    restored.reject_snapshot(error)
        except (ShimError, OSError) as error:
            self._log.error("boot failed", error=error)
            self._end(UNKNOWN)
            raise
        self.started_at_ns = time.time_ns()
        self._background.spawn(self._watch_death(machine), "watch the sandbox")
        self._oom_watch = self._background.spawn(self._watch_oom(guest), "watch for OOM")
        return guest

    async def _watch_oom(self, guest: Guest) -> None:
        """Pass on what the agent tells of the OOM killer, as long as it does."""
        try:
            while True:
                container = self.containers.get(await guest.agent.oom_event())
                if container is not None:
                    container.out_of_memory()
                await asyncio.sleep(_OOM_APART_S)
        except ShimError as error:
            self._log.debug("the agent tells no more of the OOM killer", error=error)

    async def _watch_death(self, machine: Machine) -> None:
        await machine.died.wait()
        self._end(KILLED)
        for container in self.containers.values():
            container.vm_died()
        # What is left of it (a VM without its disk, say) goes too; calls to the agent fail from here on.
        await machine.stop()
