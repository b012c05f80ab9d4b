"""One QEMU process as a `Hypervisor`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack
from pathlib import Path

from shim.children import Child, find_program, spawn
from shim.errors import FailedPrecondition, ShimError, Unavailable
from shim.hypervisor.api import (
    Device,
    Disk,
    Fingerprint,
    Snapshot,
    VmExit,
    VmSpec,
)
from shim.hypervisor.qemu import accelerator, cmdline, memory
from shim.hypervisor.qemu.console import Console
from shim.hypervisor.qemu.device import plug
from shim.hypervisor.qemu.disk import Disks
from shim.hypervisor.qemu.growth import Growth
from shim.hypervisor.qemu.migration import Migration
from shim.hypervisor.qemu.qmp import Event, QmpClient
from shim.log import Log

_START_TIMEOUT_S = 15.0
_CONSOLE_LINES_IN_REASON = 5
_PANIC = "Kernel panic"


class QemuHypervisor:
    """Implements `hypervisor.api.Hypervisor`. `program` is a name in PATH or a path.

    QEMU's messages go to the log as warnings, the guest's console as `debug` lines and to a log of its own.
    """

    def __init__(self, log: Log, program: str = "qemu-system-x86_64", console_log: Log | None = None) -> None:
        self._log, self._program, self._console_log = log, program, console_log
        self._child: Child | None = None
        self._qmp: QmpClient | None = None
        self._console: Console | None = None
        self._shutdown: str | None = None
        self._stopping = False
        self._migration = Migration()
        self._disks, self._growth = Disks(), Growth()
        self._awaited_line: tuple[str, asyncio.Event] | None = None
        self._memory: Path | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    def fingerprint(self, spec: VmSpec) -> Fingerprint:
        chosen = accelerator.choose(spec.accelerator)
        words = (*cmdline.machine(spec, chosen), *accelerator.host(chosen))
        program = Path(find_program([self._program])).resolve()
        return Fingerprint(words, (program, spec.kernel, spec.initrd))

    async def start(self, spec: VmSpec) -> None:
        if self._child is not None:
            raise FailedPrecondition("this VM was started before")
        chosen = accelerator.choose(spec.accelerator)
        with memory.create(spec.memory_mib) as memory_fd:
            async with AsyncExitStack() as undo:
                qmp_ours, qmp_theirs = socket.socketpair()
                undo.callback(qmp_ours.close)
                console = Console(self._on_console_line)
                undo.callback(console.close)
                with qmp_theirs, console.writer() as console_fd:
                    qmp_fd = qmp_theirs.fileno()
                    options = cmdline.arguments(
                        spec, chosen, qmp_fd=qmp_fd, console_fd=console_fd, memory_fd=memory_fd
                    )
                    child = spawn(
                        [*_in_netns(spec.netns), self._program, *options],
                        pass_fds=(qmp_fd, console_fd, memory_fd),
                        on_line=self._on_message,
                    )
                undo.push_async_callback(child.kill)
                qmp = QmpClient(qmp_ours, self._on_event)
                undo.callback(qmp.close)
                if spec.snapshot is None:
                    version = await self._handshake(child, qmp)
                else:
                    version = await self._restore(child, qmp, spec.snapshot, memory_fd)
                self._child, self._qmp, self._console = child, qmp, console
                undo.pop_all()
        # Nobody else holds it open: the memory is QEMU's, and gone with it.
        self._memory = Path(f"/proc/{child.pid}/fd/{memory_fd}")
        how = "boots" if spec.snapshot is None else "restored"
        self._log.info("QEMU started", pid=child.pid, version=version, accelerator=chosen, how=how)

    async def add_device(self, device: Device) -> None:
        await plug(self._connected(), device, self._log)

    async def add_disk(self, disk: Disk) -> str:
        return await self._disks.plug(self._connected(), disk)

    async def remove_disk(self, disk_id: str) -> None:
        await self._disks.unplug(self._connected(), disk_id)

    async def add_memory(self, memory_mib: int) -> None:
        await self._growth.add_memory(self._connected(), memory_mib)

    async def add_vcpu(self) -> None:
        await self._growth.add_vcpu(self._connected())

    async def resume(self) -> None:
        await self._execute("cont")

    async def console_line(self, text: str) -> None:
        child, seen = self._running(), asyncio.Event()
        if self._console is None or text in self._console.text:
            return
        self._awaited_line = text, seen
        waiting = [asyncio.create_task(seen.wait()), asyncio.create_task(child.wait())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._awaited_line = None
            for task in waiting:
                task.cancel()

    async def save(self, snapshot: Snapshot) -> None:
        child = self._running()
        await self._execute("stop")
        assert self._qmp is not None and self._memory is not None
        fd = os.open(self._memory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._migration.save(self._qmp, child, snapshot.state)
            await asyncio.to_thread(memory.save, fd, snapshot.memory)
        finally:
            os.close(fd)

    async def wait(self) -> VmExit:
        child = self._running()
        await child.wait()
        return self._on_ended(child)

    async def stop(self, timeout_s: float = 3.0) -> VmExit:
        child = self._running()
        self._stopping = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._quit()
                await child.wait()
        except TimeoutError:
            self._log.warning("QEMU does not quit and is killed", pid=child.pid)
        except asyncio.CancelledError:
            child.send_signal(signal.SIGKILL)
            raise
        # A no-op when it has ended.
        await child.kill()
        return self._on_ended(child)

    def _running(self) -> Child:
        if self._child is None:
            raise FailedPrecondition("the VM was not started")
        return self._child

    async def _quit(self) -> None:
        try:
            await self._execute("quit")
        except ShimError as err:
            self._log.debug("QMP quit", error=err)  # QEMU is ending already, or its end will be forced

    async def _handshake(self, child: Child, qmp: QmpClient) -> str:
        """QEMU's version once it takes commands; when it ends instead, ChildFailed with its own words."""
        try:
            return await qmp.connect(_START_TIMEOUT_S)
        except Unavailable:
            # It closed the socket because it is about to end.
            async with asyncio.timeout(_START_TIMEOUT_S):
                await child.wait()
            raise child.failure() from None

    async def _restore(self, child: Child, qmp: QmpClient, snapshot: Snapshot, memory_fd: int) -> str:
        """Fill the memory while QEMU starts, then give it the state; its version."""
        copying = asyncio.ensure_future(asyncio.to_thread(memory.load, snapshot.memory, memory_fd))
        try:
            version = await self._handshake(child, qmp)
        finally:
            await asyncio.wait([copying])  # the descriptor is in use until then
            failed = copying.exception()
        if failed is not None:
            raise failed
        await self._migration.load(qmp, child, snapshot.state)
        return version

    def _connected(self) -> QmpClient:
        child = self._running()
        if self._qmp is None or child.status is not None:
            raise Unavailable(f"QEMU is gone: {self._on_ended(child).reason}")
        return self._qmp

    async def _execute(self, command: str) -> None:
        await self._connected().execute(command)

    def _on_ended(self, child: Child) -> VmExit:
        """Release what belonged to the process and say why it ended. Idempotent."""
        assert child.status is not None
        if self._qmp is not None:
            self._qmp.close()
        self._growth.on_ended()
        if self._console is not None:
            self._console.close()
        return VmExit(child.status, self._reason(child))

    def _reason(self, child: Child) -> str:
        status = child.status
        assert status is not None
        if self._stopping:
            # The console still counts: a VM is also stopped because its guest never answered.
            parts = ["stopped"]
        elif status < 0:
            parts = [f"QEMU was killed by {signal.Signals(-status).name}"]
        elif self._shutdown is not None:
            parts = [f"the VM ended itself ({self._shutdown})"]
        else:
            parts = [f"QEMU exited with {status}"]
        if not self._stopping and (output := child.output_tail.strip()):
            parts.append(f"QEMU: {output.splitlines()[-1]}")
        if self._console is not None and (lines := self._console.text.strip().splitlines()):
            # After a panic the last lines are a stack trace; what it was about stands before.
            panic = [line for line in lines if _PANIC in line][-1:]
            last = lines[-_CONSOLE_LINES_IN_REASON:]
            parts.append("console: " + " | ".join(line.strip() for line in panic or last))
        return "; ".join(parts)

    def _on_event(self, event: Event) -> None:
        self._migration.on_event(event)
        self._disks.on_event(event)
        self._growth.on_event(event)
        if event.name == "SHUTDOWN":
            self._shutdown = str(event.data.get("reason", "no reason given"))
        elif event.name == "GUEST_PANICKED":
            self._shutdown = "guest-panic"
        self._log.debug("QMP event", name=event.name)

    def _on_message(self, line: str) -> None:
        self._log.warning("QEMU", line=line)

    def _on_console_line(self, line: str) -> None:
        self._log.debug("guest console", line=line)
        if self._console_log is not None:
            self._console_log.info(line)
        if self._awaited_line is not None and self._awaited_line[0] in line:
            self._awaited_line[1].set()


def _in_netns(netns: str | None) -> list[str]:
    """The words before a command that is to run there."""
    if netns is None:
        return []
    return ["nsenter", f"--net={netns}", "--"] if netns else ["unshare", "--net", "--"]
