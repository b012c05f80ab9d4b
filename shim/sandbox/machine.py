"""The VM and its companions: brought up as one, watched as one, torn down as one.

    share (virtiofsd) ─┐
    device (vsock)    ─┼─ started together with the hypervisor, plugged in while the CPUs stand still
    hypervisor        ─┘
    agent                 connected once the CPUs run

Any of the first three that ends takes the rest with it: a guest without its disk or its control connection is
no use to anybody. What was started is in one exit stack, so a boot that fails at any step undoes the earlier
ones."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from shim.errors import DeadlineExceeded, FailedPrecondition, ShimError, Unavailable, from_status
from shim.hypervisor.api import (
    SnapshotRefused,
    SnapshotUnusable,
    VhostUserFs,
    VhostUserVsock,
    VmSpec,
)
from shim.log import Log
from shim.record import Record
from shim.sandbox.accounting import Accounting
from shim.sandbox.background import Background
from shim.sandbox.capacity import Capacity
from shim.sandbox.disks import Disks
from shim.sandbox.guest import EXECS_AT_ONCE, Guest, Limits
from shim.sandbox.network import SandboxNetwork
from shim.sandbox.parts import Parts, SandboxSettings
from shim.sandbox.volumes import sandbox_storages
from shim.stdio.logger import Loggers
from shim.stdio.wiring import Wiring
from shim.vm_size import Size

_ENTROPY_BYTES = 512
_VM = "the VM"
# Calls to the agent fail when the VM dies, and QEMU refuses a device whose companion has ended.
_BY_DEATH = (Unavailable, FailedPrecondition)
# The companions end when the VM does: its own end, seen within this time, is the better explanation.
_ROOT_CAUSE_S = 0.25
_POST_MORTEM_S = 0.5
# A restored guest answers in a fraction of a second, or something is wrong with it. Counted from its CPUs' start.
_RESTORE_S = 15.0

T = TypeVar("T")


class Machine:
    """One VM, started once; for `base` and `least` see `Capacity`. The guest takes streams at `port` (0: stdio goes
    by RPCs). `died` is set as soon as a part of it has ended by itself, or boot has failed."""

    def __init__(
        self,
        parts: Parts,
        spec: VmSpec,
        record: Record,
        *,
        base: Size,
        least: Size,
        port: int,
        limits: Limits,
        log: Log,
        reject_snapshot: Callable[[ShimError], None],
    ) -> None:
        self.reject_snapshot = reject_snapshot  # no VM is to be restored from it any more
        self._parts, self._spec, self._port = parts, spec, port
        self._base, self._least = base, least
        self._record, self._limits, self._log = record, limits, log
        self._network = SandboxNetwork(parts.network, spec.netns or "", record, log)
        self._loggers = Loggers(record, log)
        self._stack, self._background = AsyncExitStack(), Background(log)
        self._guest: Guest | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._resumed = False
        self._killer = ""  # the part whose end was not the guest's doing
        self._unrestored: SnapshotRefused | SnapshotUnusable | None = None
        self._deadline: asyncio.Timeout | None = None
        self.died = asyncio.Event()
        self.reason = ""
        self.up_s = 0.0  # how long it took to come up, 0 before that

    @property
    def restores(self) -> bool:
        """It does not boot but goes on from a snapshot."""
        return self._spec.snapshot is not None

    @property
    def size(self) -> Size:
        """What the VM has now."""
        spec = self._spec
        return Size(spec.memory_mib, spec.vcpus) if self._guest is None else self._guest.capacity.size

    @property
    def may_boot(self) -> bool:
        """After a failed `start`: whether a VM that boots may succeed where this one, restored, has not. Not when a
        companion was missing or has ended, or somebody has killed the VM: a boot would meet the same."""
        return self._unrestored is not None or self.snapshot_at_fault

    @property
    def snapshot_at_fault(self) -> bool:
        """After a failed `start`: whether the snapshot is to blame if a VM that boots does better: the VMM has not
        taken it, or its guest has crashed, stayed mute or failed to do what it was asked."""
        if isinstance(self._unrestored, SnapshotRefused):
            return True
        return self.restores and self._resumed and not self._killer

    async def start(self, settings: SandboxSettings, on_running: Callable[[], None] = lambda: None) -> Guest:
        """Boot; `on_running` is called when the CPUs run, long before the guest is up. On an error nothing is
        left running, and the message ends with the guest's last words."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._limits.boot_s) as self._deadline:
                guest = await self._unless_died(self._boot(settings, on_running))
        except TimeoutError as error:
            seconds = f"{time.monotonic() - began:.1f}"
            raise DeadlineExceeded(
                f"the sandbox was not up after {seconds} s{await self._last_words()}"
            ) from error
        except ShimError as error:
            raise from_status(error.code, f"sandbox boot: {error}{await self._last_words()}") from error
        except BaseException:
            await self.stop()
            raise
        self.up_s = time.monotonic() - began
        self._log.info("sandbox is up", seconds=f"{self.up_s:.3f}", vmm=guest.pid, restored=self.restores)
        return guest

    async def stop(self) -> None:
        """End all of it: agent, VM, device (after it has flushed), share. Idempotent; errors are logged."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name="stop machine")
        await asyncio.shield(self._stopping)

    async def rescan_network(self) -> None:
        """Take what has come into the VMM's own network namespace since the boot, which has succeeded."""
        assert self._guest is not None
        await self._network.rescan(self._parts.hypervisor, self._guest.agent, self._parts.device.client)

    async def _boot(self, settings: SandboxSettings, on_running: Callable[[], None]) -> Guest:
        parts = self._parts
        # Undone in reverse: the VM first, then the device, which still writes out what the VM has sent.
        accounting = Accounting(settings.cgroups_path, self._record, self._log)
        self._undo("cgroup", accounting.aclose)
        accounting.enter()
        self._undo("network", self._network.aclose)
        self._undo("loggers", self._loggers.aclose)
        self._undo("share", parts.share.aclose)
        self._undo("device", parts.device.aclose)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_vm())  # first: it takes longest
            group.create_task(self._start_share())
            group.create_task(self._start_device())
            group.create_task(self._network.prepare())
        await parts.hypervisor.add_device(VhostUserVsock("vsock0", parts.device.vhost_user_fd))
        parts.device.handed_over()
        await parts.hypervisor.add_device(VhostUserFs("share0", parts.share.tag, parts.share.socket))
        await self._network.plug(parts.hypervisor)
        await parts.hypervisor.resume()
        self._on_resumed()
        on_running()
        agent = await parts.connect_agent(parts.device.client, self._limits.boot_s)
        self._undo("agent", agent.aclose)
        # A round trip into a guest that has just booted is slow, and none of these needs another's answer.
        async with asyncio.TaskGroup() as group:
            version = group.create_task(agent.check())
            group.create_task(agent.set_guest_date_time(time.time_ns()))
            group.create_task(agent.reseed_random(os.urandom(_ENTROPY_BYTES)))
            group.create_task(self._network.configure(agent, parts.device.client))
            group.create_task(
                agent.create_sandbox(
                    settings.sandbox_id,
                    settings.hostname,
                    settings.dns,
                    sandbox_storages(parts.share.tag, settings.shm_bytes),
                    shared_pidns=settings.shared_pidns,
                )
            )
        self._log.debug("agent answers", version=version.result())
        stdio = Wiring(parts.device.client, agent, self._port, self._loggers, self._log)
        disks = Disks(parts.hypervisor, self._log)
        most = Size(self._spec.max_memory_mib, self._spec.max_vcpus)
        capacity = Capacity(
            parts.hypervisor, agent, self._log, base=self._base, least=self._least, size=self.size, most=most
        )
        starting = asyncio.Semaphore(EXECS_AT_ONCE)
        self._guest = Guest(agent, stdio, parts.share, disks, capacity, parts.hypervisor.pid, starting)
        return self._guest

    def _on_resumed(self) -> None:
        self._resumed = True
        if self.restores and self._deadline is not None:
            mute_at = asyncio.get_running_loop().time() + _RESTORE_S
            self._deadline.reschedule(min(mute_at, self._deadline.when() or mute_at))

    async def _start_share(self) -> None:
        await self._parts.share.start()
        self._record.add_process("virtiofsd", self._parts.share.pid)
        self._watch("virtiofsd", self._parts.share.wait)

    async def _start_device(self) -> None:
        self._record.add_process("vsock device", await self._parts.device.start())
        self._watch("the vsock device", self._parts.device.wait)

    async def _start_vm(self) -> None:
        try:
            await self._parts.hypervisor.start(self._spec)
        except (SnapshotRefused, SnapshotUnusable) as error:
            self._unrestored = error
            raise
        self._undo("hypervisor", self._stop_vm)
        self._record.add_process("hypervisor", self._parts.hypervisor.pid)
        self._watch(_VM, self._vm_exit)

    async def _stop_vm(self) -> None:
        exit_ = await self._parts.hypervisor.stop()
        self.reason = self.reason or exit_.reason

    async def _vm_exit(self) -> str:
        exit_ = await self._parts.hypervisor.wait()
        if exit_.status == -signal.SIGKILL and self._stopping is None:
            self._killer = _VM
        return exit_.reason

    # -- death -----------------------------------------------------------------------------------------------

    def _watch(self, name: str, wait: Callable[[], Awaitable[str]]) -> None:
        async def watch() -> None:
            how = await wait()
            if name != _VM:
                await asyncio.sleep(_ROOT_CAUSE_S)
            if self._stopping is None and not self.died.is_set():
                self._log.error("part of the sandbox has ended", part=name, how=how)
                self.reason = self.reason or f"{name} has ended: {how}"
                if name != _VM:
                    self._killer = name
                self.died.set()

        self._background.spawn(watch(), f"watch {name}")

    async def _unless_died(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, or Unavailable as soon as a part of the machine has ended."""
        task = asyncio.create_task(work, name="boot")
        died = asyncio.create_task(self.died.wait(), name="boot watch")
        try:
            await asyncio.wait([task, died], return_when=asyncio.FIRST_COMPLETED)
            failed = None if not task.done() or task.cancelled() else task.exception()
            if failed is not None and isinstance(_first(failed), _BY_DEATH):
                # Most likely because of a death that is only just about to be seen.
                await asyncio.wait([died], timeout=_POST_MORTEM_S)
            if died.done():
                raise Unavailable(self.reason) from failed
            return task.result()
        except BaseExceptionGroup as group:  # several steps failed: the first says enough
            raise _first(group) from group
        finally:
            task.cancel()
            died.cancel()
            await asyncio.wait([task, died])

    async def _last_words(self) -> str:
        """Stop what runs; what the VMM and the guest's console said, for an error message."""
        said = self.reason
        await self.stop()
        return f": {self.reason}" if self.reason and self.reason != said else ""

    def _undo(self, name: str, act: Callable[[], Awaitable[None]]) -> None:
        async def quietly() -> None:
            try:
                await act()
            except (ShimError, OSError) as error:
                self._log.warning("clean-up failed", step=name, error=error)

        self._stack.push_async_callback(quietly)

    async def _stop(self) -> None:
        await self._stack.aclose()
        await self._background.aclose()
        self.died.set()


def _first(found: BaseException) -> BaseException:
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found
