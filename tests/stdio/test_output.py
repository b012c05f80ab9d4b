"""The end of an output for a reader who comes before it, late, or never."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shim.stdio.fifo import open_output
from shim.stdio.output import OutputFifo


@contextlib.asynccontextmanager
async def ended(tmp_path: Path, data: bytes) -> AsyncIterator[tuple[str, OutputFifo]]:
    """A FIFO into which the device has written `data` and which it has closed."""
    path, before = str(tmp_path / "stdout"), len(os.listdir("/proc/self/fd"))
    os.mkfifo(path)
    keeper, device = open_output(path)
    assert keeper is not None
    fifo = OutputFifo(keeper)
    os.write(device, data)
    os.close(device)
    async with asyncio.timeout(10):
        yield path, fifo
    fifo.close()
    fifo.close()
    assert len(os.listdir("/proc/self/fd")) == before


def read_whole(path: str) -> bytes:
    """As `cat` does: the open waits for a writer."""
    with open(path, "rb") as file:
        return file.read()


def test_a_reader_that_opens_late_gets_what_there_is_and_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        for data in (b"gone already", b""):
            async with ended(tmp_path, data) as (path, fifo):
                waiting = asyncio.create_task(fifo.until_opened())
                await asyncio.sleep(0.05)
                assert not waiting.done()
                assert fifo.unread() == len(data)
                assert await asyncio.to_thread(read_whole, path) == data
                await waiting
            os.unlink(path)

    asyncio.run(test())


def test_a_reader_that_is_there_sees_the_end_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with ended(tmp_path, b"early") as (path, fifo):
            client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            await fifo.until_opened()
            assert (os.read(client, 100), os.read(client, 100)) == (b"early", b"")
            os.close(client)

    asyncio.run(test())


def test_what_is_unread_survives_a_reader_that_leaves(tmp_path: Path) -> None:
    async def test() -> None:
        async with ended(tmp_path, b"12") as (path, fifo):
            client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            assert os.read(client, 1) == b"1"
            await fifo.until_opened()
            os.close(client)
            client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            assert (os.read(client, 1), os.read(client, 1)) == (b"2", b"")
            os.close(client)

    asyncio.run(test())


def test_a_reader_is_who_else_has_it_open(tmp_path: Path) -> None:
    async def test() -> None:
        async with ended(tmp_path, b"") as (path, fifo):
            assert not fifo.has_reader()
            client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            assert fifo.has_reader()
            os.close(client)
            assert not fifo.has_reader()

    asyncio.run(test())


def test_close_ends_the_wait_for_a_reader_that_never_comes(tmp_path: Path) -> None:
    async def test() -> None:
        async with ended(tmp_path, b"unread") as (path, fifo):
            waiting = asyncio.create_task(fifo.until_opened())
            await asyncio.sleep(0.03)
            fifo.close()
            await waiting
            client = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            poll = select.poll()
            poll.register(client, select.POLLIN)
            assert poll.poll(0) == [], "no writer is left, and no byte"
            os.close(client)
            await fifo.until_opened()

    asyncio.run(test())


def test_without_descriptors_left_it_closes_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    async def test() -> None:
        async with ended(tmp_path, b"") as (path, fifo):
            waiting = asyncio.create_task(fifo.until_opened())
            await asyncio.sleep(0)
            monkeypatch.setattr(os, "open", none_left)
            with pytest.raises(OSError, match="Too many"):
                await waiting
            monkeypatch.undo()
            others = [os.open(path, os.O_RDONLY | os.O_NONBLOCK) for _ in range(3)]
            fifo.close()
            for fd in others:
                os.close(fd)

    asyncio.run(test())
