"""Input: from a socket into a pipe, by splice."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import socket

import pytest

from shim.guest import pump
from shim.guest.pump import CHUNK, SplicePump

from .loop import eventually, go

DATA = random.Random(2).randbytes(3 * CHUNK + 17)


class Ends:
    """A pump from a socket to a pipe of one page, and the test's ends of both."""

    def __init__(self) -> None:
        self.source, self.peer = socket.socketpair()
        for end in (self.source, self.peer):
            end.setblocking(False)
        self.reader, self.sink = os.pipe2(os.O_NONBLOCK)
        fcntl.fcntl(self.sink, fcntl.F_SETPIPE_SZ, 4096)
        self.ended: list[bool] = []
        self.pump = SplicePump(self.source.fileno(), self.sink, self.ended.append)
        self.pump.start()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.peer, data)

    async def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                chunk = os.read(self.reader, CHUNK)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            assert chunk, "the pipe has ended"
            data += chunk
        return data

    def close(self) -> None:
        self.pump.stop()
        self.source.close()
        self.peer.close()
        for fd in (self.reader, self.sink):
            if fd >= 0:
                os.close(fd)


async def turns() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def test_every_byte_arrives_and_the_end_comes_after_them() -> None:
    async def test() -> None:
        ends = Ends()
        sending = asyncio.create_task(ends.send(DATA))
        assert await ends.read(len(DATA)) == DATA
        await sending
        assert ends.ended == []
        ends.peer.shutdown(socket.SHUT_WR)
        await eventually(lambda: bool(ends.ended))
        assert ends.ended == [False]
        assert ends.pump.moved == len(DATA)
        ends.close()

    go(test)


def test_a_full_pipe_stops_it_and_loses_nothing() -> None:
    async def test() -> None:
        ends = Ends()
        sending = asyncio.create_task(ends.send(DATA))
        await turns()
        moved = ends.pump.moved
        assert 0 < moved <= 4096
        await turns()
        assert (ends.pump.moved, sending.done()) == (moved, False), "a stalled pump does nothing"
        assert await ends.read(len(DATA)) == DATA
        await sending
        ends.close()

    go(test)


@pytest.mark.parametrize("told", [False, True])
def test_the_end_waits_for_a_reader_that_is_slow(told: bool) -> None:
    """The end of the connection, or the word that nothing more will come."""

    async def test() -> None:
        ends = Ends()
        await ends.send(DATA[:20000])
        if told:
            await turns()
            ends.pump.finish()
        else:
            ends.peer.close()
        await turns()
        assert ends.ended == []
        assert await ends.read(20000) == DATA[:20000]
        await eventually(lambda: ends.ended == [False])
        ends.close()

    go(test)


def test_room_that_comes_at_the_last_moment_is_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        ends = Ends()
        await ends.send(DATA[:6000])
        await turns()
        taken, ready = [], pump._ready

        def reader_is_quick(fd: int, event: int) -> bool:
            if fd == ends.sink and not taken:
                taken.append(os.read(ends.reader, 4096))
            return ready(fd, event)

        monkeypatch.setattr(pump, "_ready", reader_is_quick)
        ends.pump.finish()
        assert taken
        assert taken[0] + await ends.read(6000 - len(taken[0])) == DATA[:6000]
        await eventually(lambda: ends.ended == [False])
        ends.close()

    go(test)


def test_a_reader_that_goes_away_ends_it_full_or_not() -> None:
    async def test() -> None:
        for size in (10, 20000):
            ends = Ends()
            await ends.send(DATA[:size])
            await turns()
            os.close(ends.reader)
            ends.reader = -1
            if size < 4096:
                await ends.send(b"lost")
            await eventually(lambda ends=ends: ends.ended == [True])  # type: ignore[misc]
            ends.close()

    go(test)


def test_single_bytes_fill_a_pipe_page_by_page_and_still_arrive() -> None:
    async def test() -> None:
        ends = Ends()
        for number in range(100):
            await ends.send(bytes([number]))
            await asyncio.sleep(0)
        assert await ends.read(100) == bytes(number for number in range(100))
        ends.close()

    go(test)
