from __future__ import annotations

import asyncio
import errno
import os
import random
import socket
from typing import Any

import pytest

from shim.guest.pump import CHUNK, Pump

from .loop import eventually, go

DATA = random.Random(1).randbytes(3 * CHUNK + 17)


class Ends:
    """A pump from a pipe to a socket, and the test's ends of both."""

    def __init__(self) -> None:
        self.source, self.writer = os.pipe2(os.O_NONBLOCK)
        self.sink, self.peer = socket.socketpair()
        self.sink.setblocking(False)
        self.peer.setblocking(False)
        self.ended: list[bool] = []
        self.pump = Pump(self.source, self.sink.fileno(), self.ended.append)
        self.pump.start()

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.writer, view) :]
            except BlockingIOError:
                await asyncio.sleep(0)

    async def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size and (chunk := await asyncio.get_running_loop().sock_recv(self.peer, CHUNK)):
            data += chunk
        return data

    def end_of_input(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def close(self) -> None:
        self.pump.stop()
        os.close(self.source)
        if self.writer >= 0:
            os.close(self.writer)
        self.sink.close()
        self.peer.close()


def test_every_byte_arrives_and_the_end_comes_after_them() -> None:
    async def test() -> None:
        ends = Ends()
        writing = asyncio.create_task(ends.write(DATA))
        assert await ends.read(len(DATA)) == DATA
        await writing
        assert ends.ended == []
        ends.end_of_input()
        await eventually(lambda: bool(ends.ended))
        assert ends.ended == [False]
        assert ends.pump.moved == len(DATA)
        ends.close()

    go(test)


def test_a_stalled_sink_stops_the_source_and_loses_nothing() -> None:
    async def test() -> None:
        ends = Ends()
        writing = asyncio.create_task(ends.write(DATA))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not writing.done()
        moved = ends.pump.moved
        for _ in range(50):
            await asyncio.sleep(0)
        assert ends.pump.moved == moved, "a stalled pump does nothing"
        assert await ends.read(len(DATA)) == DATA
        await writing
        ends.close()

    go(test)


def test_bytes_written_before_the_end_arrive_even_when_the_sink_is_slow() -> None:
    async def test() -> None:
        ends = Ends()
        ends.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await ends.write(DATA[:60000])
        ends.end_of_input()
        for _ in range(20):
            await asyncio.sleep(0)
        assert ends.ended == []
        assert await ends.read(60000) == DATA[:60000]
        await eventually(lambda: ends.ended == [False])
        ends.close()

    go(test)


def test_a_sink_that_goes_away_ends_the_pump() -> None:
    async def test() -> None:
        ends = Ends()
        ends.peer.close()
        await ends.write(b"lost")
        await eventually(lambda: ends.ended == [True])
        ends.close()

    go(test)


def test_a_sink_that_goes_away_while_it_is_full_ends_the_pump() -> None:
    async def test() -> None:
        ends = Ends()
        writing = asyncio.create_task(ends.write(DATA))
        for _ in range(50):
            await asyncio.sleep(0)
        ends.peer.close()
        await eventually(lambda: ends.ended == [True])
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        ends.close()

    go(test)


def test_a_reset_source_counts_as_its_end() -> None:
    async def test() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        client = socket.create_connection(listener.getsockname())
        served, _ = listener.accept()
        served.setblocking(False)
        reader, sink = os.pipe2(os.O_NONBLOCK)
        ended: list[bool] = []
        Pump(served.fileno(), sink, ended.append).start()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        await eventually(lambda: ended == [False])
        for fd in (reader, sink):
            os.close(fd)
        served.close()
        listener.close()

    go(test)


def test_finish_ends_a_source_that_never_ends_by_itself_after_its_last_byte() -> None:
    async def test() -> None:
        ends = Ends()
        os.write(ends.writer, b"last words")
        ends.pump.finish()
        assert ends.ended == [False]
        assert await ends.read(10) == b"last words"
        ends.close()

    go(test)


def test_finish_waits_for_a_full_sink() -> None:
    async def test() -> None:
        ends = Ends()
        ends.sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        await ends.write(DATA[:60000])
        for _ in range(20):
            await asyncio.sleep(0)
        ends.pump.finish()
        assert ends.ended == []
        assert await ends.read(60000) == DATA[:60000]
        await eventually(lambda: ends.ended == [False])
        ends.close()

    go(test)


def test_settle_waits_for_what_is_in_the_pipe_but_not_for_its_end() -> None:
    async def test() -> None:
        ends = Ends()
        os.write(ends.writer, b"x" * 1000)
        assert await ends.pump.settle(ends.pump.due(), 5.0)
        assert ends.pump.moved == 1000
        assert ends.ended == [], "somebody still holds the pipe open"
        ends.close()

    go(test)


def test_settle_gives_up_on_a_sink_that_stands_still() -> None:
    async def test() -> None:
        ends = Ends()
        writing = asyncio.create_task(ends.write(DATA))
        for _ in range(50):
            await asyncio.sleep(0)
        assert not await ends.pump.settle(ends.pump.due(), 0.01)
        assert await ends.read(len(DATA)) == DATA, "and still loses nothing"
        await writing
        ends.close()

    go(test)


def test_settle_of_a_pump_that_has_ended_returns_at_once() -> None:
    async def test() -> None:
        ends = Ends()
        ends.end_of_input()
        await eventually(lambda: ends.ended == [False])
        assert await ends.pump.settle(ends.pump.due(), 5.0)
        assert await ends.pump.settle(None, 5.0)
        ends.close()

    go(test)


def test_settle_of_a_terminal_waits_for_its_end_or_for_silence() -> None:
    async def test() -> None:
        ends = Ends()
        assert not await ends.pump.settle(None, 0.01)
        settling = asyncio.create_task(ends.pump.settle(None, 5.0))
        await asyncio.sleep(0)
        ends.end_of_input()
        assert await settling
        ends.close()

    go(test)


def test_streams_take_turns() -> None:
    async def test() -> None:
        busy, quiet = Ends(), Ends()
        writing = asyncio.create_task(busy.write(DATA * 4))
        reading = asyncio.create_task(busy.read(len(DATA) * 4))
        os.write(quiet.writer, b"!")
        assert await quiet.read(1) == b"!"
        assert not reading.done(), "the short message did not wait for the long one"
        await writing
        await reading
        busy.close()
        quiet.close()

    go(test)


def test_a_write_too_large_for_the_kernels_memory_goes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        ends = Ends()
        write = os.write

        def short_of_memory(fd: int, data: bytes) -> int:
            if fd == ends.sink.fileno() and len(data) > 4096:
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return write(fd, data)

        monkeypatch.setattr(os, "write", short_of_memory)
        writing = asyncio.create_task(ends.write(DATA))
        assert await ends.read(len(DATA)) == DATA
        await writing
        assert ends.ended == []
        ends.close()

    go(test)


@pytest.mark.parametrize("broken", ["source", "sink"])
def test_an_error_that_nobody_expects_ends_the_pump_and_is_told_once(broken: str) -> None:
    async def test() -> None:
        told: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        reader, writer = os.pipe2(os.O_NONBLOCK)
        sink, null = os.eventfd(0), os.open("/dev/null", os.O_WRONLY)
        ended: list[bool] = []
        # An eventfd takes eight bytes and no less.
        pump = Pump(writer if broken == "source" else reader, sink, ended.append)
        if broken == "source":
            os.close(reader)
        pump.start()
        os.write(null if broken == "source" else writer, b"x")
        await eventually(lambda: bool(told))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(told) == 1
        assert ended == [broken == "sink"]
        for fd in {reader, writer, sink, null} - ({reader} if broken == "source" else set()):
            os.close(fd)

    go(test)
