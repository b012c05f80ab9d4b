"""The daemon's process around a sandbox of fakes: how it ends, whoever asks for it and however many at once."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim import daemon as module
from shim.bootstrap.args import parse
from shim.config.model import Config
from shim.daemon import Daemon
from shim.errors import Unavailable
from shim.log import Log
from shim.logfile import SHIM_LOG, LogFile
from shim.pb.containerd.task import v2
from shim.record import place, sandbox_dir
from shim.sandbox.machine import Machine
from shim.ttrpc.channel import Channel
from shim.ttrpc.server import Server
from tests.fakes.containerd import FakeContainerd
from tests.fakes.hypervisor import FakeHypervisor, VmExit
from tests.sandbox.stack import Stack, until


class SlowHypervisor(FakeHypervisor):
    """One whose VM takes until `released` to end when it is asked to."""

    def __init__(self) -> None:
        super().__init__(pid=os.getpid())
        self.released = asyncio.Event()
        self.released.set()

    async def stop(self, timeout_s: float = 3.0) -> VmExit:
        self.calls.append("asked to stop")
        await self.released.wait()
        return await super().stop(timeout_s)


class Shim:
    """A daemon that serves the sandbox c1 on its socket, and containerd's two ends of it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack = Stack(folder)  # its fakes; its own sandbox is not used
        self.vm = self.stack.hypervisor = SlowHypervisor()
        self.containerd = FakeContainerd()
        self.path = folder / "s"
        self.run_dir = Path(sandbox_dir("ns", "c1"))
        monkeypatch.delenv("TTRPC_ADDRESS", raising=False)
        monkeypatch.setattr(Daemon, "_make_machine", self._machine)
        self.run_dir.mkdir(parents=True)
        kept = LogFile(f"{self.run_dir}/{SHIM_LOG}")
        call = parse(["-namespace", "ns", "-id", "c1", "-address", f"{folder}/c"])
        self.daemon = Daemon(call, Config(), _listener(self.path), Log(None), host_mounts=-1, kept=kept)

    async def serve(self) -> None:
        """Returns when it answers."""
        self._events = Server([self.containerd])
        await self._events.serve(_listener(self.stack.directory / "c.ttrpc"))
        self.served = asyncio.create_task(self.daemon.serve(self.stack.bundle("c1")))
        self._channel = await Channel.dial(str(self.path))
        self.task = self.stack.task = v2.TaskStub(self._channel)
        await self.task.connect(v2.ConnectRequest(id="c1"))

    async def shutdown(self, *, now: bool = False) -> None:
        await self.task.shutdown(v2.ShutdownRequest(id="c1", now=now))

    async def aclose(self) -> None:
        await self._channel.aclose()
        await self._events.aclose()
        await self.stack.aclose()

    def _machine(self, spec: Any, boots: bool) -> Machine:
        self.stack.record = self.daemon._record
        return self.stack._machine(spec, boots)


def _listener(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    sock.setblocking(False)
    return sock


Body = Callable[[Shim], Awaitable[None]]


@pytest.fixture
def with_shim(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Body], None]]:
    """Runs a body with a shim, which must have ended then and left nothing. Its folder is short, for sockets' sake."""
    folder = Path(tempfile.mkdtemp(prefix="kpd"))
    monkeypatch.setattr(place, "RUN_DIR", str(folder / "run"))

    async def main(body: Body) -> None:
        async with asyncio.timeout(20):
            shim = Shim(folder, monkeypatch)
            await shim.serve()
            await body(shim)
            await shim.served
            await shim.aclose()
        assert not shim.path.exists() and not (folder / "run").exists()
        assert not shim.stack.share.mounted
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    yield lambda body: asyncio.run(main(body))
    shutil.rmtree(folder)


def test_the_socket_is_gone_before_the_vm_is_and_all_else_before_the_answer(
    with_shim: Callable[[Body], None],
) -> None:
    """So a `start` of the same group makes a shim of its own and does not find this one."""

    async def body(shim: Shim) -> None:
        await shim.stack.run()
        await shim.shutdown()
        assert shim.path.exists(), "there is a container"
        shim.stack.agent.exit("c1")
        await shim.stack.wait()
        await shim.stack.delete()
        shim.vm.released.clear()
        ending = asyncio.create_task(shim.shutdown())
        await until(lambda: "asked to stop" in shim.vm.calls)
        assert not shim.path.exists() and shim.run_dir.exists()
        with pytest.raises(Unavailable, match="shutting down"):
            await shim.stack.create("c2")
        assert not ending.done()
        shim.vm.released.set()
        await ending
        assert not shim.run_dir.exists()

    with_shim(body)


def _shutdown(shim: Shim) -> Awaitable[None]:
    return shim.shutdown(now=True)


async def _terminate(shim: Shim) -> None:
    signal.raise_signal(signal.SIGTERM)


async def _die(shim: Shim) -> None:
    shim.vm.die()


@pytest.mark.parametrize(
    "ends",
    [
        (_shutdown, _shutdown),
        (_shutdown, _terminate),
        (_terminate, _shutdown),
        (_terminate, _terminate),
        (_shutdown, _die),
        (_die, _shutdown, _terminate),
    ],
    ids=lambda ends: "+".join(end.__name__ for end in ends),
)
def test_any_number_may_end_it_at_once(
    with_shim: Callable[[Body], None], ends: tuple[Callable[[Shim], Awaitable[None]], ...]
) -> None:
    async def body(shim: Shim) -> None:
        await shim.stack.run()
        await asyncio.gather(*(end(shim) for end in ends))
        await shim.served
        assert shim.vm.calls.count("asked to stop") == 1
        assert shim.stack.device_process.calls.count("aclose") == 1
        assert shim.containerd.topics == ["/tasks/create", "/tasks/start", "/tasks/exit"]

    with_shim(body)


def test_one_that_cannot_end_in_order_ends_all_the_same(
    with_shim: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(shim: Shim) -> None:
        aclose = shim.daemon._sandbox.aclose

        async def broken() -> None:
            raise RuntimeError("on purpose")

        monkeypatch.setattr(shim.daemon._sandbox, "aclose", broken)
        signal.raise_signal(signal.SIGTERM)
        await shim.served
        assert isinstance(shim.daemon._stopping, asyncio.Task)
        assert "on purpose" in str(shim.daemon._stopping.exception())
        await aclose()
        await shim.daemon._remove_traces()  # as `delete` does

    with_shim(body)


def test_one_that_nobody_uses_ends(
    with_shim: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_IDLE_S", 0.05)

    async def body(shim: Shim) -> None:
        began = time.monotonic()
        await shim.served
        assert time.monotonic() - began < 5
        assert shim.vm.calls.count("asked to stop") == 1, "the VM that has begun to boot"

    with_shim(body)


def test_one_whose_last_container_has_gone_ends_though_nobody_shuts_it_down(
    with_shim: Callable[[Body], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """containerd has died behind Delete, or has not waited for a Create to be undone."""
    monkeypatch.setattr(module, "_IDLE_S", 0.2)

    async def body(shim: Shim) -> None:
        await shim.stack.create()
        await asyncio.sleep(0.3)
        assert not shim.served.done()
        await shim.stack.delete()
        await shim.served

    with_shim(body)
