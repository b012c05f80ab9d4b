"""A vsock device without a guest: passed fds are kept (as the device would), and tests act for the other end."""

from __future__ import annotations

import asyncio
import os
import socket

from shim.errors import ShimError, Unavailable
from shim.vsock.api import StreamStat


class FakeStream:
    """One passed fd. `finish` is the guest's end of the stream: the fd is closed and DRAINED told."""

    def __init__(self, fd: int, host_port: int, automatic: bool) -> None:
        self.fd, self._host_port = fd, host_port
        self.eofs = 0
        self.knows_eof = True
        self.closed = self.abandoned = False
        self.moved = 0
        self._open = True
        self._ended = asyncio.Event()
        if automatic:
            self._ended.set()

    @property
    def host_port(self) -> int:
        return self._host_port

    async def eof(self) -> bool:
        self.eofs += 1
        return self.knows_eof

    async def stat(self) -> StreamStat | None:
        return StreamStat(self.moved, 0, 0)

    async def drained(self) -> StreamStat | None:
        await self._ended.wait()
        return StreamStat(self.moved, 0, 0)

    def abandon(self) -> None:
        self.abandoned = True
        self.finish()

    def close(self) -> None:
        self.closed = True
        self._ended.set()

    def write(self, data: bytes) -> None:
        self.moved += os.write(self.fd, data)

    def finish(self) -> None:
        if self._open:
            self._open = False
            os.close(self.fd)
        self._ended.set()


class FakeVsockDevice:
    """Implements `vsock.api.VsockDevice`. With `automatic`, streams count as drained from the start."""

    def __init__(self, *, automatic: bool = True) -> None:
        self.automatic = automatic
        self.streams: dict[int, FakeStream] = {}
        self.ports: list[int] = []  # the guest's, of the streams
        self.fail: ShimError | None = None
        self.fail_after = 0  # as many streams are taken before `fail` is raised
        self.hold_after = 1000  # as many streams are taken before no answer comes any more

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        raise Unavailable("the fake device has no guest")

    async def pass_fd(self, fd: int, port: int, timeout_s: float) -> FakeStream:
        await asyncio.sleep(0)
        if self.fail is not None and len(self.streams) >= self.fail_after:
            raise self.fail
        if len(self.streams) >= self.hold_after:
            await asyncio.get_running_loop().create_future()
        host_port = 0x40000000 + len(self.streams)
        stream = FakeStream(os.dup(fd), host_port, self.automatic)
        self.streams[host_port] = stream
        self.ports.append(port)
        return stream

    def close(self) -> None:
        """The device has ended: every fd is closed."""
        for stream in self.streams.values():
            stream.finish()


class FakeDeviceProcess:
    """Implements `sandbox.parts.DeviceProcess` around a `FakeVsockDevice`."""

    def __init__(self, client: FakeVsockDevice, fail: ShimError | None = None) -> None:
        self.client, self.fail = client, fail
        self.calls: list[str] = []
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> int:
        self.calls.append("start")
        if self.fail is not None:
            raise self.fail
        return os.getpid()

    @property
    def vhost_user_fd(self) -> int:
        return 0

    def handed_over(self) -> None:
        self.calls.append("handed_over")

    async def wait(self) -> str:
        return await asyncio.shield(self._ended)

    def die(self) -> None:
        self._ended.set_result("killed by SIGKILL")

    async def aclose(self) -> None:
        self.calls.append("aclose")
        self.client.close()
