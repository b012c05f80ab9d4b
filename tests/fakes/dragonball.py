"""A vsock device as Dragonball has it: its two requests, no word more, and the control connection of a passed fd is
closed as soon as the OK line is written. The guest is whoever listens on `ports`."""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from shim.vsock.client import DeviceClient

# (host port, the guest's end of the connection)
Accept = Callable[[int, socket.socket], Awaitable[None]]


class Dragonball(DeviceClient):
    """The device and, as the sandbox wants them in one, our real client of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ports: dict[int, Accept] = {}
        self._next = 1 << 30
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(16)
        self._listener.setblocking(False)
        self._run(self._accept())

    def _run(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            control, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self._run(self._serve(control))

    async def _serve(self, control: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        line = b""
        with control:
            while not line.endswith(b"\n"):
                line += await loop.sock_recv(control, 1)
            words = line.decode().lower().split()
            if words[0] == "connect":
                ours, port = await self._open(int(words[1]))
                with ours:
                    await loop.sock_sendall(control, b"OK %d\n" % port)
                    await asyncio.gather(_relay(control, ours), _relay(ours, control))
                return
            assert words == ["passfd"]
            await _readable(control.fileno())
            message, fds, _, _ = socket.recv_fds(control, 32, 2)
            if int(message.split()[0]) not in self.ports:
                os.close(fds[0])
                return
            ours, port = await self._open(int(message.split()[0]))
            await loop.sock_sendall(control, b"OK %d\n" % port)
        self._run(_pump(fds[0], ours))

    async def _open(self, guest_port: int) -> tuple[socket.socket, int]:
        ours, guests = socket.socketpair()
        ours.setblocking(False)
        guests.setblocking(False)
        host_port, self._next = self._next, self._next + 1
        await self.ports[guest_port](host_port, guests)
        return ours, host_port

    def close(self) -> None:
        """The VM has ended."""
        for task in list(self._tasks):
            task.cancel()
        self._listener.close()


async def _relay(source: socket.socket, sink: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, 65536):
        await loop.sock_sendall(sink, data)
    sink.shutdown(socket.SHUT_WR)


async def _pump(fd: int, guest: socket.socket) -> None:
    """One passed fd: which way it goes shows in how it was opened."""
    loop = asyncio.get_running_loop()
    os.set_blocking(fd, False)
    try:
        with guest:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY:
                while data := await loop.sock_recv(guest, 65536):
                    await write_all(fd, data)
                return
            while data := await read_some(fd):
                await loop.sock_sendall(guest, data)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the guest has closed its end
    finally:
        os.close(fd)


async def _ready(fd: int, add: Callable[..., None], remove: Callable[[int], bool]) -> None:
    event = asyncio.Event()
    add(fd, event.set)
    try:
        await event.wait()
    finally:
        remove(fd)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    await _ready(fd, loop.add_reader, loop.remove_reader)


async def read_some(fd: int, size: int = 65536) -> bytes:
    """What a pipe has, once it has something; b"" when its writers are gone (never before one came)."""
    while True:
        await _readable(fd)
        try:
            return os.read(fd, size)
        except BlockingIOError:
            continue


async def write_all(fd: int, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            await _ready(fd, loop.add_writer, loop.remove_writer)
