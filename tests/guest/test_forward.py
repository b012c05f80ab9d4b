"""Forwarded ports, with a TCP listener in the place of the vsock one."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest

from shim import errors
from shim.guest import forward
from shim.guest.forward import PortForward
from shim.log import Log

from .loop import eventually, go

DATA = bytes(range(256)) * 8192  # 2 MiB: more than any buffer takes at once


def listen() -> tuple[socket.socket, int]:
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


async def call(port: int) -> socket.socket:
    """The host's end of a vsock connection."""
    sock = socket.socket()
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    return sock


async def read_all(sock: socket.socket) -> bytes:
    data = b""
    while chunk := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
        data += chunk
    return data


async def serving(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    test: Callable[[PortForward, int], Awaitable[None]],
    address: str = "127.0.0.1",
) -> None:
    """Runs `test` with the port of a server whose every connection is `talk`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await talk(reader, writer)
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, address, 0)
    ports = PortForward(Log(2, "error"), listen)
    try:
        await test(ports, server.sockets[0].getsockname()[1])
    finally:
        await ports.aclose()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.01)  # the server's transports close in callbacks of their own


async def answer_with_what_came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write((await reader.read(-1))[::-1])
    await writer.drain()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_bytes_go_both_ways_and_so_does_the_end(address: str) -> None:
    async def scenario(ports: PortForward, port: int) -> None:
        host = await call(await ports.connect(port))
        await asyncio.get_running_loop().sock_sendall(host, DATA)
        host.shutdown(socket.SHUT_WR)
        assert await read_all(host) == DATA[::-1]
        host.close()
        await eventually(lambda: not ports._joined)

    go(lambda: serving(answer_with_what_came, scenario, address))


def test_a_server_that_takes_no_more_is_heard_to_its_end() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(4)
        writer.write(b"too large")
        await writer.drain()

    async def scenario(ports: PortForward, port: int) -> None:
        host = await call(await ports.connect(port))
        await asyncio.get_running_loop().sock_sendall(host, b"body")
        assert await read_all(host) == b"too large"
        host.close()

    go(lambda: serving(refuse, scenario))


def test_a_host_that_breaks_off_ends_the_connection() -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)
        ended.set()

    async def scenario(ports: PortForward, port: int) -> None:
        host = await call(await ports.connect(port))
        await eventually(lambda: bool(ports._joined))
        host.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        host.close()
        await ended.wait()

    go(lambda: serving(wait, scenario))


def test_where_nobody_listens_the_host_is_told() -> None:
    async def scenario() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            with pytest.raises(errors.Unavailable, match=r"127\.0\.0\.1: Connection refused, ::1"):
                await PortForward(Log(2, "error"), listen).connect(unused.getsockname()[1])

    go(scenario)


@pytest.mark.parametrize("port", [0, 65536, 1 << 31])
def test_what_is_no_port_is_refused(port: int) -> None:
    async def scenario() -> None:
        with pytest.raises(errors.InvalidArgument):
            await PortForward(Log(2, "error"), listen).connect(port)

    go(scenario)


def test_a_connection_that_nobody_comes_for_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "_CLAIM_S", 0.01)

    async def scenario(ports: PortForward, port: int) -> None:
        vsock_port = await ports.connect(port)
        await eventually(lambda: not ports._waiting)
        with pytest.raises(ConnectionRefusedError):
            await call(vsock_port)

    go(lambda: serving(answer_with_what_came, scenario))
