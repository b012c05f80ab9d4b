"""A hypervisor without a VM: it remembers what was asked, fails where told to, ends when told to."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from shim.errors import FailedPrecondition, ShimError, Unavailable
from shim.hypervisor.api import Device, Disk, Fingerprint, Snapshot, VmExit, VmSpec


class FakeHypervisor:
    """Implements `hypervisor.api.Hypervisor`.

    `fail` maps the name of a method to the error it raises. `calls` lists what was done, in order:
    "start", "add_device:<id>", "resume", "console_line", "save", "stop". The console says whatever is waited
    for; a saved VM is two small files. `files` are those of its fingerprint.
    """

    def __init__(self, fail: Mapping[str, ShimError] | None = None, pid: int = 4711) -> None:
        self.fail = dict(fail or {})
        self.calls: list[str] = []
        self.files: tuple[Path, ...] = ()
        self.spec: VmSpec | None = None
        self.devices: list[Device] = []
        self.disks: list[Disk] = []
        self._pid = pid
        self._exit: asyncio.Future[VmExit] | None = None

    @property
    def pid(self) -> int:
        self._running()
        return self._pid

    def fingerprint(self, spec: VmSpec) -> Fingerprint:
        return Fingerprint((f"{spec.memory_mib} MiB", f"{spec.vcpus} CPUs"), self.files)

    async def start(self, spec: VmSpec) -> None:
        self._do("start", "start")
        if self._exit is not None:
            raise FailedPrecondition("this VM was started before")
        self._exit = asyncio.get_running_loop().create_future()
        self.spec = spec

    async def add_device(self, device: Device) -> None:
        self._alive()
        self._do("add_device", f"add_device:{device.id}")
        self.devices.append(device)

    async def add_disk(self, disk: Disk) -> str:
        self._alive()
        self._do("add_disk", f"add_disk:{disk.path}:{'ro' if disk.read_only else 'rw'}")
        self.disks.append(disk)
        return f"01/00/{len(self.disks):02x}"

    async def remove_disk(self, disk_id: str) -> None:
        self._alive()
        self._do("remove_disk", f"remove_disk:{disk_id}")

    async def add_memory(self, memory_mib: int) -> None:
        self._alive()
        self._do("add_memory", f"add_memory:{memory_mib}")

    async def add_vcpu(self) -> None:
        self._alive()
        self._do("add_vcpu", "add_vcpu")

    async def resume(self) -> None:
        self._alive()
        self._do("resume", "resume")

    async def console_line(self, text: str) -> None:
        self._do("console_line", "console_line")

    async def save(self, snapshot: Snapshot) -> None:
        self._alive()
        snapshot.memory.write_bytes(bytes(4096))
        self._do("save", "save")
        snapshot.state.write_bytes(b"state")

    async def wait(self) -> VmExit:
        return await asyncio.shield(self._running())

    async def stop(self, timeout_s: float = 3.0) -> VmExit:
        ended = self._running()
        if not ended.done():
            self.calls.append("stop")
            ended.set_result(VmExit(0, "stopped"))
        return await self.wait()

    def die(self, status: int = -9, reason: str = "QEMU was killed by SIGKILL") -> None:
        """The VM ends by itself."""
        self._running().set_result(VmExit(status, reason))

    def _do(self, method: str, call: str) -> None:
        self.calls.append(call)
        if method in self.fail:
            raise self.fail[method]

    def _running(self) -> asyncio.Future[VmExit]:
        if self._exit is None:
            raise FailedPrecondition("the VM was not started")
        return self._exit

    def _alive(self) -> None:
        if self._running().done():
            raise Unavailable("QEMU is gone")
