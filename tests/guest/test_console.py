"""The debug console with a real shell on a real terminal."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from shim.guest.console import DebugConsole
from shim.guest.reaper import Reaper
from shim.log import Log

from .loop import eventually, go


@asynccontextmanager
async def console(directory: Path) -> AsyncIterator[tuple[DebugConsole, str]]:
    """A console, and the socket it listens on in place of vsock."""
    path, tasks = str(directory / "console.sock"), asyncio.all_tasks()
    reaper, null = Reaper(), os.open("/dev/null", os.O_WRONLY)
    reaper.install()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        found = DebugConsole(reaper, Log(null))
        found.listen(listener)
        try:
            yield found, path
        finally:
            asyncio.get_running_loop().remove_reader(listener)
            await eventually(lambda: not found.sessions and asyncio.all_tasks() <= tasks)
            reaper.uninstall()
            os.close(null)


def test_a_connection_is_a_shell_on_a_terminal_of_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        async with console(tmp_path) as (_, path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"tty; cut -d' ' -f1,6 /proc/$$/stat; : </dev/tty && echo own''ed; exit 3\n")
            said = await reader.read()
            assert b"/dev/pts/" in said and b"owned" in said
            assert re.search(rb"^(\d+) \1\r$", said, re.MULTILINE), "it leads its session"
            writer.close()

    go(run)


def test_two_shells_do_not_hear_each_other(tmp_path: Path) -> None:
    async def run() -> None:
        async with console(tmp_path) as (found, path):
            pairs = [await asyncio.open_unix_connection(path) for _ in range(2)]
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


def test_a_client_that_goes_takes_its_shell_along(tmp_path: Path) -> None:
    async def run() -> None:
        async with console(tmp_path) as (found, path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"echo re''ady; sleep 1000\n")
            await reader.readuntil(b"ready")
            (session,) = found.sessions
            writer.close()
            await eventually(lambda: not os.path.exists(f"/proc/{session.pid}"))

    go(run)


def test_a_background_child_does_not_hold_the_connection(tmp_path: Path) -> None:
    async def run() -> None:
        async with console(tmp_path) as (_, path):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(b"trap '' HUP; sleep 5 & echo la''st; exit\n")
            assert b"last" in await reader.read()
            writer.close()

    go(run)
