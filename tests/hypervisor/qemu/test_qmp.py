"""QMP: whole messages out of any pieces, hostile peers, commands that overlap, time out or lose QEMU."""

from __future__ import annotations

import array
import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shim.errors import DeadlineExceeded, Unavailable
from shim.hypervisor.qemu.qmp import (
    Decoder,
    Event,
    Greeting,
    QmpClient,
    QmpError,
    QmpProtocolError,
    Reply,
    encode,
)

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, '
    b'"package": "Debian"}, "capabilities": ["oob"]}}\r\n'
)
STREAM = (
    GREETING
    + b'{"return": {}, "id": 1}\r\n'
    + b'{"timestamp": {"seconds": 1}, "event": "SHUTDOWN", '
    + b'"data": {"guest": true, "reason": "guest-reset"}}\r\n'
    + b'{"timestamp": {"seconds": 1}, "event": "RESUME"}\r\n'
    + b'{"id": 2, "error": {"class": "GenericError", "desc": "no such thing"}}\r\n'
)
MESSAGES = [
    Greeting("7.2.22"),
    Reply(1, {}),
    Event("SHUTDOWN", {"guest": True, "reason": "guest-reset"}),
    Event("RESUME", {}),
    Reply(2, error="no such thing"),
]


def test_a_stream_decodes_whole() -> None:
    assert Decoder().feed(STREAM) == MESSAGES


def test_a_stream_decodes_byte_by_byte() -> None:
    decoder = Decoder()
    assert [message for byte in STREAM for message in decoder.feed(bytes([byte]))] == MESSAGES


def test_a_message_without_its_end_is_not_told() -> None:
    decoder = Decoder()
    assert decoder.feed(STREAM[:-1]) == MESSAGES[:-1]
    assert decoder.feed(b"\n") == MESSAGES[-1:]


@pytest.mark.parametrize(
    "line",
    [
        b"not json",
        b"[]",
        b"42",
        b"null",
        b'{"hello": 1}',
        b'{"error": "text"}',
        b'{"error": {"desc": 5}}',
        b'{"event": 5}',
        b'{"QMP": {}}',
        b"\xff\xfe",
        b"{" * 100_000,
        b"[" * 100_000,
    ],
)
def test_garbage_is_a_protocol_error(line: bytes) -> None:
    with pytest.raises(QmpProtocolError):
        Decoder().feed(line + b"\n")


def test_an_endless_message_is_a_protocol_error() -> None:
    decoder = Decoder(limit=1000)
    decoder.feed(b"x" * 1000)
    with pytest.raises(QmpProtocolError, match="longer than 1000"):
        decoder.feed(b"x")


@pytest.mark.parametrize("data", [b'{"event": "X", "data": [1]}\n', b'{"event": "X", "data": null}\n'])
def test_event_data_of_another_type_counts_as_none(data: bytes) -> None:
    assert Decoder().feed(data) == [Event("X", {})]


@pytest.mark.parametrize("wrong", ["true", '"7"', "null", "[1]"])
def test_an_id_that_is_no_number_is_no_id(wrong: str) -> None:
    (reply,) = Decoder().feed(b'{"return": {}, "id": %s}\n' % wrong.encode())
    assert reply == Reply(None, {})


def test_a_command_is_one_line() -> None:
    line = encode("device_add", {"id": "a\nb"}, 3)
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"execute": "device_add", "arguments": {"id": "a\nb"}, "id": 3}


class FakeQemu:
    """The other side of a QMP socket, driven by the test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.fds: list[int] = []
        self._buffer = b""
        sock.setblocking(False)

    async def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            await self.send_bytes(json.dumps(message).encode() + b"\r\n")

    async def send_bytes(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def command(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            with contextlib.suppress(BlockingIOError):
                data, ancillary, _, _ = self.sock.recvmsg(65536, 1024)
                self._buffer += data
                for _, _, payload in ancillary:
                    self.fds += array.array("i", payload)
                continue
            await asyncio.sleep(0)
        line, _, self._buffer = self._buffer.partition(b"\n")
        command: dict[str, Any] = json.loads(line)
        return command


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[QmpClient, FakeQemu, list[Event]]]:
    ours, theirs = socket.socketpair()
    events: list[Event] = []
    client, qemu = QmpClient(ours, events.append), FakeQemu(theirs)
    try:
        await qemu.send_bytes(GREETING)
        connecting = asyncio.ensure_future(client.connect(5))
        command = await qemu.command()
        assert command["execute"] == "qmp_capabilities"
        await qemu.send({"return": {}, "id": command["id"]})
        assert await connecting == "7.2.22"
        yield client, qemu, events
    finally:
        client.close()
        theirs.close()


def test_commands_go_one_after_the_other() -> None:
    async def scenario() -> None:
        async with connected() as (client, qemu, _):
            first = asyncio.ensure_future(client.execute("a"))
            second = asyncio.ensure_future(client.execute("b"))
            command = await qemu.command()
            assert command["execute"] == "a"
            for _ in range(10):
                await asyncio.sleep(0)
            with pytest.raises(BlockingIOError):
                qemu.sock.recv(1)
            await qemu.send({"return": 1, "id": command["id"]})
            command = await qemu.command()
            await qemu.send({"return": 2, "id": command["id"]})
            assert list(await asyncio.gather(first, second)) == [1, 2]

    asyncio.run(scenario())


def test_an_error_has_qemus_words() -> None:
    async def scenario() -> None:
        async with connected() as (client, qemu, _):
            running = asyncio.ensure_future(client.execute("device_add"))
            command = await qemu.command()
            await qemu.send({"error": {"class": "GenericError", "desc": "Bus full"}, "id": command["id"]})
            with pytest.raises(QmpError, match="device_add: Bus full"):
                await running

    asyncio.run(scenario())


def test_fds_travel_with_their_command_and_stay_the_callers() -> None:
    async def scenario() -> None:
        async with connected() as (client, qemu, _):
            read_end, write_end = os.pipe()
            running = asyncio.ensure_future(client.execute("getfd", {"fdname": "x"}, fds=[write_end]))
            command = await qemu.command()
            assert command["arguments"] == {"fdname": "x"}
            await qemu.send({"return": {}, "id": command["id"]})
            await running
            os.close(write_end)
            os.write(qemu.fds[0], b"through")
            assert os.read(read_end, 10) == b"through"
            os.close(qemu.fds[0])
            os.close(read_end)

    asyncio.run(scenario())


def test_a_late_reply_is_not_taken_for_the_next_commands() -> None:
    async def scenario() -> None:
        async with connected() as (client, qemu, _):
            with pytest.raises(DeadlineExceeded, match="slow"):
                await client.execute("slow", timeout_s=0.01)
            late = await qemu.command()
            running = asyncio.ensure_future(client.execute("next"))
            command = await qemu.command()
            await qemu.send({"return": "late", "id": late["id"]}, {"return": "right", "id": command["id"]})
            assert await running == "right"

    asyncio.run(scenario())


def test_a_cancelled_command_frees_the_line() -> None:
    async def scenario() -> None:
        async with connected() as (client, qemu, _):
            running = asyncio.ensure_future(client.execute("a"))
            await qemu.command()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            following = asyncio.ensure_future(client.execute("b"))
            command = await qemu.command()
            await qemu.send({"return": {}, "id": command["id"]})
            await following

    asyncio.run(scenario())


def test_events_are_told_also_in_the_middle_of_a_command() -> None:
    async def scenario() -> None:
        async with connected() as (client, qemu, events):
            running = asyncio.ensure_future(client.execute("cont"))
            command = await qemu.command()
            await qemu.send({"event": "RESUME"}, {"return": {}, "id": command["id"]})
            await running
            assert events == [Event("RESUME", {})]

    asyncio.run(scenario())


@pytest.mark.parametrize("last_words", [b"", b"rubbish\n", b"{" * 2_000_000])
def test_a_command_in_flight_fails_when_qemu_goes_or_goes_mad(last_words: bytes) -> None:
    async def scenario() -> None:
        async with connected() as (client, qemu, _):
            running = asyncio.ensure_future(client.execute("cont"))
            await qemu.command()
            with contextlib.suppress(ConnectionError):
                await qemu.send_bytes(last_words)
            qemu.sock.close()
            with pytest.raises((Unavailable, QmpProtocolError)):
                await running
            with pytest.raises((Unavailable, QmpProtocolError)):
                await client.execute("cont")

    asyncio.run(scenario())


def test_silence_instead_of_a_greeting_has_a_deadline() -> None:
    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        client = QmpClient(ours, lambda event: None)
        with pytest.raises(DeadlineExceeded):
            await client.connect(0.01)
        client.close()
        client.close()
        theirs.close()

    asyncio.run(scenario())
