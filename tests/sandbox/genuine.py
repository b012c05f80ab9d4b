"""The whole shim, from the Task service down to its client of the device and of the agent, on a guest that is not ours:
a plain Dragonball device and an agent with the genuine one's manners."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from shim.agent.kata import KataAgent
from shim.pb.containerd.task import v2
from shim.ttrpc.channel import Channel
from shim.ttrpc.server import Server
from shim.ttrpc.service import from_grpclib
from tests.fakes.dragonball import Dragonball
from tests.fakes.genuine_agent import GenuineAgent, GenuineHealth, GuestProcess
from tests.fakes.vsock_device import FakeDeviceProcess
from tests.sandbox.stack import Stack, with_stack

AGENT_PORT, PASSFD_PORT = 1024, 1027


class GenuineStack(Stack):
    """A stack whose `guest` and `dragonball` are other people's. Calls to the agent have half a second."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.guest = GenuineAgent()
        self.guest_server = Server([from_grpclib(item) for item in (self.guest, GenuineHealth())], self.log)
        self.device = self.dragonball = Dragonball(directory / "kata.hvsock")  # type: ignore[assignment]
        self.dragonball.ports[PASSFD_PORT] = self.guest.arrive
        self.dragonball.ports[AGENT_PORT] = lambda _port, sock: self.guest_server.serve_connection(sock)
        self.device_process = FakeDeviceProcess(self.dragonball)  # type: ignore[arg-type]

    async def _connect(self, device: Any, timeout_s: float) -> Any:
        return KataAgent(await Channel.connect(await device.connect(AGENT_PORT, timeout_s)), 0.5)

    def process(self, exec_id: str = "", container_id: str = "c1") -> GuestProcess:
        return self.guest.processes[container_id, exec_id]

    async def close_io(self, exec_id: str = "") -> None:
        await self.task.close_io(v2.CloseIoRequest(id="c1", exec_id=exec_id, stdin=True))

    async def aclose(self) -> None:
        await super().aclose()
        await self.guest_server.aclose()
        await self.guest.aclose()


def with_genuine(test: Callable[[GenuineStack], Awaitable[None]]) -> Callable[[Path], None]:
    return with_stack(test, GenuineStack)  # type: ignore[arg-type]


async def read_fifo(fd: int) -> bytes:
    """All that comes until its writers are gone, while the loop goes on."""
    data = b""
    while True:
        try:
            if not (chunk := os.read(fd, 65536)):
                return data
            data += chunk
        except BlockingIOError:
            await asyncio.sleep(0.001)
