"""The whole shim on fakes, with containerd's client in front: what most tests of the sandbox and the task service
start from."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from shim.errors import ShimError
from shim.hypervisor.api import Snapshot, VmSpec
from shim.log import Log
from shim.pb.containerd.task import v2
from shim.record import Record
from shim.sandbox import Sandbox, TaskEvent
from shim.sandbox.guest import Limits
from shim.sandbox.machine import Machine
from shim.sandbox.parts import Parts
from shim.task.service import SERVICES, TaskService
from shim.ttrpc import memory
from shim.ttrpc.server import Server
from shim.ttrpc.service import from_grpclib
from shim.vm_size import Size
from tests.fakes.agent import FakeAgent
from tests.fakes.hypervisor import FakeHypervisor
from tests.fakes.network import FakeHostNetwork
from tests.fakes.share import FakeShare
from tests.fakes.vsock_device import FakeDeviceProcess, FakeStream, FakeVsockDevice

LIMITS = Limits(
    boot_s=5,
    stream_s=1,
    drain_grace_s=0.05,
    drain_limit_s=0.5,
    abandon_s=0.05,
    exec_exit_s=0.1,
    post_mortem_s=0.2,
    oom_grace_s=0.1,
)


class Stack:
    """Fakes below, a sandbox in the middle, `task` (a stub over an in-memory connection) in front."""

    port = 1027  # where the guest takes streams

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.agent = FakeAgent()
        self.device = FakeVsockDevice()
        self.device_process = FakeDeviceProcess(self.device)
        self.share = FakeShare()
        self.network = FakeHostNetwork()
        self.netns: str | None = None  # of the machines
        self.hypervisor = FakeHypervisor(pid=os.getpid())
        self.least = Size(128, 1)  # what the VM is to have at the first container
        self.snapshot: Snapshot | None = None  # of the first machine
        self.rejected: ShimError | None = None  # why the snapshot of the first machine is no good
        self.mended: set[str] = set()  # what fails in the first machine's agent and not in the second's
        self.events: list[TaskEvent] = []
        self.shut_down = False
        self.record = Record(str(directory), "ns", "c1", "")
        self.log = Log(os.open(directory / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), "debug")
        self.sandbox = Sandbox(
            "c1", self._machine, self.record, self.events.append, limits=LIMITS, log=self.log
        )
        self.server = Server(
            [from_grpclib(TaskService(self.sandbox, self._on_shutdown), name) for name in SERVICES], self.log
        )
        self.channel = memory.connect(self.server)
        self.task = v2.TaskStub(self.channel)

    def _reject(self, error: ShimError) -> None:
        self.rejected = error

    def _machine(self, spec: Any, boots: bool) -> Machine:
        if boots:
            self.snapshot = None
            self.hypervisor = FakeHypervisor(pid=os.getpid())
            self.device_process, self.share = FakeDeviceProcess(self.device), FakeShare()
            failing, self.agent = self.agent.fail, FakeAgent()
            self.agent.fail.update(
                {name: error for name, error in failing.items() if name not in self.mended}
            )
        parts = Parts(self.hypervisor, self.device_process, self.share, self._connect, self.network)
        vm = VmSpec(
            "c1",
            self.directory,
            Path("/k"),
            Path("/i"),
            (),
            128,
            1,
            snapshot=self.snapshot,
            netns=self.netns,
            max_memory_mib=1024,
            max_vcpus=4,
        )
        return Machine(
            parts,
            vm,
            self.record,
            base=Size(128, 1),
            least=self.least,
            port=self.port,
            limits=LIMITS,
            log=self.log,
            reject_snapshot=self._reject,
        )

    async def _connect(self, _device: Any, _timeout_s: float) -> FakeAgent:
        await self.agent._do("connect")
        return self.agent

    async def _on_shutdown(self) -> None:
        await self.sandbox.aclose()
        self.shut_down = True

    # -- what containerd does --------------------------------------------------------------------------------

    def bundle(self, container_id: str, **spec: Any) -> Path:
        path = self.directory / "bundles" / container_id
        (path / "rootfs").mkdir(parents=True, exist_ok=True)
        process = {"args": ["sh"], "cwd": "/", "terminal": False}
        given = {"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process, "linux": {}, **spec}
        (path / "config.json").write_text(json.dumps(given))
        return path

    def fifos(self, *names: str) -> dict[str, str]:
        paths = {name: str(self.directory / f"{name}.fifo") for name in names}
        for path in paths.values():
            with contextlib.suppress(FileExistsError):
                os.mkfifo(path)
        return paths

    async def create(self, container_id: str = "c1", **fields: Any) -> v2.CreateTaskResponse:
        bundle = fields.pop("bundle", None) or self.bundle(container_id, **fields.pop("spec", {}))
        return await self.task.create(v2.CreateTaskRequest(id=container_id, bundle=str(bundle), **fields))

    async def start(self, container_id: str = "c1", exec_id: str = "") -> v2.StartResponse:
        return await self.task.start(v2.StartRequest(id=container_id, exec_id=exec_id))

    async def run(self, container_id: str = "c1", **fields: Any) -> None:
        await self.create(container_id, **fields)
        await self.start(container_id)

    async def exec(self, exec_id: str, container_id: str = "c1", **fields: Any) -> None:
        from betterproto.lib.google.protobuf import Any as AnyMessage

        spec = AnyMessage(type_url="x", value=json.dumps({"args": ["ls"], "cwd": "/"}).encode())
        fields = {"spec": spec, **fields}
        await self.task.exec(v2.ExecProcessRequest(id=container_id, exec_id=exec_id, **fields))

    async def wait(self, container_id: str = "c1", exec_id: str = "") -> int:
        async with asyncio.timeout(5):
            return (await self.task.wait(v2.WaitRequest(id=container_id, exec_id=exec_id))).exit_status

    async def state(self, container_id: str = "c1", exec_id: str = "") -> v2.StateResponse:
        return await self.task.state(v2.StateRequest(id=container_id, exec_id=exec_id))

    async def kill(
        self, signal: int = 9, container_id: str = "c1", exec_id: str = "", all: bool = False
    ) -> None:
        await self.task.kill(v2.KillRequest(id=container_id, exec_id=exec_id, signal=signal, all=all))

    async def delete(self, container_id: str = "c1", exec_id: str = "") -> v2.DeleteResponse:
        return await self.task.delete(v2.DeleteRequest(id=container_id, exec_id=exec_id))

    async def shutdown(self) -> None:
        await self.task.shutdown(v2.ShutdownRequest(id="c1"))

    def stream(self, index: int) -> FakeStream:
        return list(self.device.streams.values())[index]

    def told(self) -> list[str]:
        """The events so far: kind and whose, in order."""
        return [f"{type(event).__name__}:{_whose(event)}" for event in self.events]

    async def aclose(self) -> None:
        await self.sandbox.aclose()
        await self.channel.aclose()
        await self.server.aclose()
        self.device.close()
        os.close(self.log._fd)


def _whose(event: TaskEvent) -> str:
    return getattr(event, "id", "") or getattr(event, "exec_id", "") or event.container_id


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until `condition` holds."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - of anything
            await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def stack(directory: Path, kind: type[Stack] = Stack) -> AsyncIterator[Stack]:
    """A stack; afterwards there must be no more tasks and fds than before."""
    tasks, fds = asyncio.all_tasks(), _fds()
    running = kind(directory)
    try:
        yield running
    finally:
        await running.aclose()
    for _ in range(10):
        await asyncio.sleep(0)
    left = asyncio.all_tasks() - tasks
    assert not left, f"tasks left: {left}"
    assert _fds() == fds, f"fds left: {_fds()} instead of {fds}"


def with_stack(test: Callable[[Stack], Awaitable[None]], kind: type[Stack] = Stack) -> Callable[[Path], None]:
    """Run an async test with a stack of its own."""

    def run(tmp_path: Path) -> None:
        async def main() -> None:
            async with asyncio.timeout(20), stack(tmp_path, kind) as running:
                await test(running)

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def _fds() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return {fd: target for fd, target in found.items() if not target.startswith("/proc/")}
