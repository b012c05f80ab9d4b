"""One QEMU process as a `Hypervisor`."""

from __future__ import annotations

import asyncio
import signal
import socket
from contextlib import AsyncExitStack
from typing import assert_never

from shim.children import Child, spawn
from shim.errors import FailedPrecondition, ShimError, Unavailable
from shim.hypervisor.api import Device, VhostUserFs, VhostUserVsock, VmExit, VmSpec
from shim.hypervisor.qemu import accelerator, cmdline
from shim.hypervisor.qemu.console import Console
from shim.hypervisor.qemu.qmp import Event, Json, QmpClient
from shim.log import Log

_START_TIMEOUT_S = 15.0
_CONSOLE_LINES_IN_REASON = 5
_PANIC = "Kernel panic"


class QemuHypervisor:
    """Implements `hypervisor.api.Hypervisor`. `program` is a name in PATH or a path.

    QEMU's messages go to the log as warnings, the guest's console as `debug` lines.
    """

    def __init__(self, log: Log, program: str = "qemu-system-x86_64") -> None:
        self._log, self._program = log, program
        self._child: Child | None = None
        self._qmp: QmpClient | None = None
        self._console: Console | None = None
        self._shutdown: str | None = None
        self._stopping = False

    @property
    def pid(self) -> int:
        return self._running().pid

    async def start(self, spec: VmSpec) -> None:
        if self._child is not None:
            raise FailedPrecondition("this VM was started before")
        chosen = accelerator.choose(spec.accelerator)
        async with AsyncExitStack() as undo:
            qmp_ours, qmp_theirs = socket.socketpair()
            undo.callback(qmp_ours.close)
            console = Console(self._on_console_line)
            undo.callback(console.close)
            with qmp_theirs, console.writer() as console_fd:
                options = cmdline.arguments(spec, chosen, qmp_fd=qmp_theirs.fileno(), console_fd=console_fd)
                child = spawn(
                    [self._program, *options],
                    pass_fds=(qmp_theirs.fileno(), console_fd),
                    on_line=self._on_message,
                )
            undo.push_async_callback(child.kill)
            qmp = QmpClient(qmp_ours, self._on_event)
            undo.callback(qmp.close)
            version = await self._handshake(child, qmp)
            self._child, self._qmp, self._console = child, qmp, console
            undo.pop_all()
        self._log.info("QEMU started", pid=child.pid, version=version, accelerator=chosen)

    async def add_device(self, device: Device) -> None:
        match device:
            case VhostUserVsock():
                await self._execute("getfd", {"fdname": device.id}, fd=device.fd)
                await self._plug(
                    device.id,
                    {"type": "fd", "data": {"str": device.id}},
                    {"driver": "vhost-user-vsock-pci", "disable-legacy": "on"},
                )
            case VhostUserFs():
                await self._plug(
                    device.id,
                    {"type": "unix", "data": {"path": str(device.socket)}},
                    {"driver": "vhost-user-fs-pci", "tag": device.tag, "queue-size": 1024},
                )
            case _:
                assert_never(device)

    async def resume(self) -> None:
        await self._execute("cont")

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

    async def _execute(self, command: str, arguments: Json | None = None, fd: int | None = None) -> None:
        child = self._running()
        if self._qmp is None or child.status is not None:
            raise Unavailable(f"QEMU is gone: {self._on_ended(child).reason}")
        await self._qmp.execute(command, arguments, fds=() if fd is None else (fd,))

    async def _plug(self, device_id: str, address: Json, properties: Json) -> None:
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        chardev = f"{device_id}-chardev"
        await self._execute("chardev-add", {"id": chardev, "backend": backend})
        try:
            await self._execute(
                "device_add",
                {**properties, "id": device_id, "chardev": chardev, "bus": cmdline.HOTPLUG_BUS},
            )
        except ShimError:
            await self._remove_chardev(chardev)
            raise

    async def _remove_chardev(self, chardev: str) -> None:
        try:
            await self._execute("chardev-remove", {"id": chardev})
        except ShimError as err:
            self._log.warning("a character device stays behind", chardev=chardev, error=err)

    def _on_ended(self, child: Child) -> VmExit:
        """Release what belonged to the process and say why it ended. Idempotent."""
        assert child.status is not None
        if self._qmp is not None:
            self._qmp.close()
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
        if event.name == "SHUTDOWN":
            self._shutdown = str(event.data.get("reason", "no reason given"))
        elif event.name == "GUEST_PANICKED":
            self._shutdown = "guest-panic"
        self._log.debug("QMP event", name=event.name)

    def _on_message(self, line: str) -> None:
        self._log.warning("QEMU", line=line)

    def _on_console_line(self, line: str) -> None:
        self._log.debug("guest console", line=line)
