"""Streams' handlers run inside the selector; asyncio gets its turn whenever it has something to do."""

from __future__ import annotations

import asyncio
import os
import select
import socket

from shim.guest.loop import running

from .loop import eventually, go


def test_a_stream_is_served_without_a_turn_of_the_loop_until_it_asks_for_one() -> None:
    async def test() -> None:
        streams, calls = running().streams, 0
        reader, writer = os.pipe()
        os.write(writer, b"123")
        asked = asyncio.Event()

        def handler() -> None:
            nonlocal calls
            calls += 1
            os.read(reader, 1)
            if calls == 3:
                streams.unwatch(reader, select.EPOLLIN)
                asked.set()
                streams.leave()

        streams.watch(reader, select.EPOLLIN, handler)
        await asyncio.sleep(0)
        await asked.wait()
        assert calls == 3
        os.close(reader)
        os.close(writer)

    go(test)


def test_timers_are_due_while_a_stream_never_rests() -> None:
    async def test() -> None:
        streams, calls = running().streams, 0
        reader, writer = os.pipe()
        os.write(writer, b"x")

        def handler() -> None:
            nonlocal calls
            calls += 1

        streams.watch(reader, select.EPOLLIN, handler)
        await asyncio.sleep(0.05)
        assert calls > 1
        streams.unwatch(reader, select.EPOLLIN)
        streams.unwatch(reader, select.EPOLLIN)
        os.close(reader)
        os.close(writer)

    go(test)


def test_asyncio_s_own_descriptors_are_heard_beside_a_stream_that_never_rests() -> None:
    async def test() -> None:
        streams = running().streams
        pipe = os.pipe()
        os.write(pipe[1], b"x")
        streams.watch(pipe[0], select.EPOLLIN, lambda: None)
        one, other = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=one)
        other.send(b"heard\n")
        assert await reader.readline() == b"heard\n"
        writer.close()
        await writer.wait_closed()
        other.close()
        streams.unwatch(pipe[0], select.EPOLLIN)
        for fd in pipe:
            os.close(fd)

    go(test)


def test_both_directions_of_one_descriptor_are_watched_apart() -> None:
    async def test() -> None:
        streams, heard = running().streams, []
        one, other = socket.socketpair()
        other.send(b"x")
        fd = one.fileno()

        def reading() -> None:
            heard.append("reading")
            streams.unwatch(fd, select.EPOLLIN)

        def writing() -> None:
            heard.append("writing")
            streams.unwatch(fd, select.EPOLLOUT)

        streams.watch(fd, select.EPOLLIN, reading)
        streams.watch(fd, select.EPOLLOUT, writing)
        await eventually(lambda: len(heard) == 2)
        assert sorted(heard) == ["reading", "writing"]
        one.close()
        other.close()

    go(test)


def test_a_handler_that_fails_is_reported_and_the_others_go_on() -> None:
    async def test() -> None:
        loop, reported = running(), []
        loop.set_exception_handler(lambda _loop, context: reported.append(context["exception"]))
        reader, writer = os.pipe()
        os.write(writer, b"x")

        def handler() -> None:
            loop.streams.unwatch(reader, select.EPOLLIN)
            raise ValueError("no")

        loop.streams.watch(reader, select.EPOLLIN, handler)
        await eventually(lambda: bool(reported))
        assert isinstance(reported[0], ValueError)
        os.close(reader)
        os.close(writer)

    go(test)
