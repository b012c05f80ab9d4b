"""The debug console with a real shell on a real terminal."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shim import errors
from shim.guest.console import DebugConsole
from shim.guest.reaper import Reaper
from shim.log import Log

from .loop import eventually, go


@asynccontextmanager
async def console() -> AsyncIterator[tuple[DebugConsole, int]]:
    """A console, and the port it listens on: TCP's in place of vsock's."""
    tasks = asyncio.all_tasks()
    reaper, null = Reaper(), os.open("/dev/null", os.O_WRONLY)
    reaper.install()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        found = DebugConsole(reaper, Log(null))
        found.listen(listener)
        try:
            yield found, listener.getsockname()[1]
        finally:
            asyncio.get_running_loop().remove_reader(listener)
            await eventually(lambda: not found.sessions and asyncio.all_tasks() <= tasks)
            reaper.uninstall()
            os.close(null)


def test_a_connection_is_a_shell_on_a_terminal_of_its_own() -> None:
    async def run() -> None:
        async with console() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"tty; cut -d' ' -f1,6 /proc/$$/stat; : </dev/tty && echo own''ed; exit 3\n")
            said = await reader.read()
            assert b"/dev/pts/" in said and b"owned" in said
            assert re.search(rb"^(\d+) \1\r$", said, re.MULTILINE), "it leads its session"
            writer.close()

    go(run)


def test_two_shells_do_not_hear_each_other() -> None:
    async def run() -> None:
        async with console() as (found, port):
            pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            for number, (reader, writer) in enumerate(pairs):
                writer.write(b"echo this-is-$((%d + 40))\n" % number)
                await reader.readuntil(b"this-is-4%d" % number)
            assert len(found.sessions) == 2
            for reader, writer in pairs:
                writer.write(b"\x04")
                rest = await reader.read()
                assert b"this-is" not in rest
                writer.close()

    go(run)


def test_a_shell_is_known_by_its_port_and_has_a_size_and_an_end() -> None:
    async def run() -> None:
        async with console() as (found, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            name = writer.get_extra_info("sockname")[1]
            session = found.session(name)  # whether or not the loop has accepted it
            session.resize(41, 123)
            writer.write(b"stty size; kill -9 $$\n")
            assert b"41 123" in await reader.read()
            assert await session.wait() == 137
            writer.close()
            await eventually(lambda: not found.sessions)
            session.resize(1, 1)
            with pytest.raises(errors.NotFound):
                found.session(name)

    go(run)


def test_a_client_that_goes_takes_its_shell_along() -> None:
    async def run() -> None:
        async with console() as (found, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"echo re''ady; sleep 1000\n")
            await reader.readuntil(b"ready")
            (session,) = found.sessions.values()
            writer.close()
            await eventually(lambda: not os.path.exists(f"/proc/{session.pid}"))

    go(run)


def test_a_background_child_does_not_hold_the_connection() -> None:
    async def run() -> None:
        async with console() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"trap '' HUP; sleep 5 & echo la''st; exit\n")
            assert b"last" in await reader.read()
            writer.close()

    go(run)
