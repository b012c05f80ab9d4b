"""The daemon's side of the device's socket, against scripted devices."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import select
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shim.errors import DeadlineExceeded, Unavailable
from shim.vsock.api import StreamStat
from shim.vsock.client import DeviceClient

Script = Callable[[socket.socket], Awaitable[None]]


def against(
    *scripts: Script,
) -> Callable[[Callable[[DeviceClient], Awaitable[None]]], Callable[[Path], None]]:
    """Run a test against a device whose n-th connection follows the n-th script (the last one again)."""

    def decorate(test: Callable[[DeviceClient], Awaitable[None]]) -> Callable[[Path], None]:
        def run(tmp_path: Path) -> None:
            asyncio.run(main(tmp_path / "vsock.sock"))

        async def main(path: Path) -> None:
            gc.collect()  # what an earlier test has left
            before = len(os.listdir("/proc/self/fd"))
            loop = asyncio.get_running_loop()
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
                listener.listen()
                listener.setblocking(False)
                server = asyncio.create_task(serve(listener))
                async with asyncio.timeout(10):
                    await test(DeviceClient(path))
                server.cancel()
                await asyncio.wait([server])
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(os.listdir("/proc/self/fd")) == before
            assert asyncio.all_tasks(loop) == {asyncio.current_task()}

        async def serve(listener: socket.socket) -> None:
            count = 0
            async with asyncio.TaskGroup() as group:
                while True:
                    sock, _ = await asyncio.get_running_loop().sock_accept(listener)
                    group.create_task(follow(scripts[min(count, len(scripts) - 1)], sock))
                    count += 1

        async def follow(script: Script, sock: socket.socket) -> None:
            with sock, contextlib.suppress(ConnectionError):
                await script(sock)

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return decorate


async def receive(sock: socket.socket, size: int = 100) -> bytes:
    return await asyncio.get_running_loop().sock_recv(sock, size)


async def send(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)


async def readable(sock: socket.socket) -> None:
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sock, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(sock)


async def take_fd(sock: socket.socket, expected: bytes = b"1027 stream") -> int:
    """The device's half of a passfd handshake, up to its answer."""
    assert await receive(sock, 7) == b"passfd\n"
    await readable(sock)
    message, fds, _, _ = socket.recv_fds(sock, 32, 2)
    assert message == expected
    assert len(fds) == 1
    return fds[0]


async def refuse(sock: socket.socket) -> None:
    await receive(sock)


async def silent(sock: socket.socket) -> None:
    while await receive(sock):
        pass


async def accept_and_echo(sock: socket.socket) -> None:
    assert await receive(sock) == b"CONNECT 1024\n"
    await send(sock, b"OK 1073741824\nhello")  # payload in the same segment must not be lost
    while data := await receive(sock):
        await send(sock, data)


@against(refuse, refuse, accept_and_echo)
async def test_a_refused_connection_is_tried_again_until_the_guest_listens(client: DeviceClient) -> None:
    sock = await client.connect(1024, 5)
    assert await receive(sock) == b"hello"
    await send(sock, b"x")
    assert await receive(sock) == b"x"
    assert not sock.getblocking()
    sock.close()


@against(refuse)
async def test_nobody_listening_is_a_deadline(client: DeviceClient) -> None:
    with pytest.raises(DeadlineExceeded, match="port 1024"):
        await client.connect(1024, 0.05)


@against(silent)
async def test_a_device_that_does_not_answer_is_a_deadline(client: DeviceClient) -> None:
    with pytest.raises(DeadlineExceeded):
        await client.connect(1024, 0.05)
    with pytest.raises(DeadlineExceeded):
        await client.pass_fd(0, 1027, 0.05)


@against(refuse)
async def test_a_missing_device_is_unavailable_at_once(client: DeviceClient) -> None:
    gone = DeviceClient(Path("/nowhere/vsock.sock"))
    with pytest.raises(Unavailable):
        await gone.connect(1024, 60)
    with pytest.raises(Unavailable):
        await gone.pass_fd(0, 1027, 60)


async def _garbage(sock: socket.socket) -> None:
    await receive(sock)
    await send(sock, b"A" * 4096)
    await silent(sock)


async def _no_number(sock: socket.socket) -> None:
    await receive(sock)
    await send(sock, b"OK many\n")


@pytest.mark.parametrize("script", [_garbage, _no_number, refuse])
def test_an_answer_that_is_none_is_a_refusal(tmp_path: Path, script: Script) -> None:
    @against(script)
    async def body(client: DeviceClient) -> None:
        with pytest.raises(Unavailable, match="1027"):
            await client.pass_fd(0, 1027, 1)
        with pytest.raises(DeadlineExceeded):
            await client.connect(1, 0.03)

    body(tmp_path)


async def a_stream(sock: socket.socket) -> None:
    """Our device: counters, eof and the end, with lines in pieces."""
    os.close(await take_fd(sock))
    for piece in (b"OK 10737", b"41825\n"):
        await send(sock, piece)
        await asyncio.sleep(0)
    lines = b""
    while b"eof\n" not in lines:
        lines += await receive(sock)
        if lines.endswith(b"stat\n"):
            await send(sock, b"STAT rx=3 ")
            await asyncio.sleep(0)
            await send(sock, b"tx=4 stalls=5\n")
    await send(sock, b"DRAINED rx=18446744073709551615 ")
    await asyncio.sleep(0)
    await send(sock, b"tx=8 stalls=9\n")


@against(a_stream)
async def test_a_stream_counts_ends_and_drains(client: DeviceClient) -> None:
    read, write = os.pipe()
    stream = await client.pass_fd(read, 1027, 1)
    os.close(read)
    os.close(write)
    assert stream.host_port == 1073741825
    assert await stream.stat() == StreamStat(3, 4, 5)
    waiting = [asyncio.create_task(stream.drained()) for _ in range(3)]
    assert await stream.eof()
    assert await asyncio.gather(*waiting) == [StreamStat(2**64 - 1, 8, 9)] * 3
    assert await stream.drained() == StreamStat(2**64 - 1, 8, 9)
    assert await stream.eof(), "nothing is left to end"
    assert await stream.stat() == StreamStat(2**64 - 1, 8, 9)
    stream.close()
    stream.close()


async def plain_dragonball(sock: socket.socket) -> None:
    os.close(await take_fd(sock))
    await send(sock, b"OK 1073741824\n")


@against(plain_dragonball)
async def test_a_plain_device_says_so_by_closing(client: DeviceClient) -> None:
    stream = await client.pass_fd(1, 1027, 1)
    assert await stream.eof() is False
    assert await stream.stat() is None
    assert await stream.drained() is None
    stream.close()


async def flood(sock: socket.socket) -> None:
    os.close(await take_fd(sock))
    await send(sock, b"OK 1073741824\nSTAT rx=1 tx=1 stalls=1\nnonsense\nDRAINED rx=-1 tx=1 stalls=1\n")
    await send(sock, b"x" * 100000)
    await silent(sock)


@against(flood)
async def test_a_device_that_babbles_is_not_believed_nor_buffered(client: DeviceClient) -> None:
    stream = await client.pass_fd(1, 1027, 1)
    assert await stream.drained() is None
    stream.close()


async def until_given_up(sock: socket.socket) -> None:
    os.close(await take_fd(sock))
    await send(sock, b"OK 1073741824\n")
    assert await receive(sock) == b"close\n"
    await send(sock, b"DRAINED rx=1 tx=0 stalls=0\n")


@against(until_given_up)
async def test_a_stream_can_be_given_up(client: DeviceClient) -> None:
    stream = await client.pass_fd(1, 1027, 1)
    stream.abandon()
    assert await stream.drained() == StreamStat(1, 0, 0)
    stream.abandon()
    stream.close()


async def mute(sock: socket.socket) -> None:
    os.close(await take_fd(sock))
    await send(sock, b"OK 1073741824\n")
    await silent(sock)


@against(mute)
async def test_closing_a_stream_answers_all_who_wait(client: DeviceClient) -> None:
    stream = await client.pass_fd(1, 1027, 1)
    waiting = [asyncio.create_task(stream.drained()), asyncio.create_task(stream.stat())]
    await asyncio.sleep(0)
    stream.close()
    assert await asyncio.gather(*waiting) == [None, None]


def test_a_device_with_too_many_callers_is_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "vsock.sock"
        client = DeviceClient(path)
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
            listener.bind(str(path))
            listener.listen(0)
            waiting.connect(str(path))
            with pytest.raises(DeadlineExceeded):
                await client.connect(1024, 0.05)
            with pytest.raises(DeadlineExceeded):
                await client.pass_fd(waiting.fileno(), 1027, 0.05)
            dialling = asyncio.create_task(client.connect(1024, 5))
            await asyncio.sleep(0)
            listener.accept()[0].close()
            caller = None
            while caller is None:
                await asyncio.sleep(0)
                ready, _, _ = select.select([listener], [], [], 0)
                caller = listener.accept()[0] if ready else None
            caller.setblocking(False)
            assert await receive(caller) == b"CONNECT 1024\n"
            await send(caller, b"OK 1073741824\n")
            (await dialling).close()
            caller.close()

    asyncio.run(main())


def test_a_device_that_dies_under_a_request_is_told_as_gone(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "vsock.sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        dial = DeviceClient._dial

        async def dial_then_die(client: DeviceClient) -> socket.socket:
            try:
                return await dial(client)
            finally:
                listener.close()

        client = DeviceClient(path)
        client._dial = dial_then_die.__get__(client)  # type: ignore[method-assign]
        with pytest.raises(Unavailable, match="is gone"):
            await client.connect(1024, 5)

    asyncio.run(main())
