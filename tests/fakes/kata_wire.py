"""A ttrpc client that owes nothing to our code: what it sends is put together here, from numbers alone.

Messages are dicts from field number to value, as Kata's agent.proto, oci.proto and health.proto number them; frames
are ttrpc's. Used as an oracle: our codec, our tables and our framing must agree with it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

REQUEST, RESPONSE = 1, 2
AGENT, HEALTH = "grpc.AgentService", "grpc.Health"

Message = Mapping[int, Any]


class Status(Exception):
    """The server's answer was an error."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # a negative number has ten bytes
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode(message: Message) -> bytes:
    """proto3: fields with their default value are left out, repeated numbers are packed, maps are messages."""
    out = b""
    for number, value in message.items():
        if isinstance(value, (list, tuple)):
            if value and isinstance(value[0], int):
                out += _bytes(number, b"".join(varint(item) for item in value))
            else:
                out += b"".join(_bytes(number, _raw(item)) for item in value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value) if value else b""
        elif isinstance(value, Mapping) or value:
            out += _bytes(number, _raw(value))
    return out


def text_map(entries: Mapping[str, str]) -> list[Message]:
    return [{1: key, 2: value} for key, value in entries.items()]


def _raw(value: Message | str | bytes) -> bytes:
    if isinstance(value, Mapping):
        return encode(value)
    return value.encode() if isinstance(value, str) else value


def _bytes(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def decode(data: bytes) -> dict[int, list[Any]]:
    """Field number -> its values in order: ints for varints, bytes for all else."""
    fields: dict[int, list[Any]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = number()
        if key & 7 == 0:
            fields.setdefault(key >> 3, []).append(number())
        else:
            assert key & 7 == 2, f"wire type {key & 7}"
            size = number()
            assert at + size <= len(data)
            fields.setdefault(key >> 3, []).append(data[at : at + size])
            at += size
    return fields


class KataWire:
    """One connection. Calls run side by side, as the runtimes have them. `pieces` is the size of each write."""

    def __init__(self, connected: socket.socket, *, flags: int = 0, pieces: int = 1 << 20) -> None:
        connected.setblocking(False)
        self._socket, self._flags, self._pieces = connected, flags, pieces
        self._sending = asyncio.Lock()
        self._next = 1
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._reader = asyncio.create_task(self._read())
        self.called: list[str] = []

    async def call(
        self,
        method: str,
        request: Message,
        *,
        service: str = AGENT,
        timeout_ns: int = 0,
        metadata: Sequence[tuple[str, str]] = (),
    ) -> dict[int, list[Any]]:
        """The decoded answer; raises Status."""
        self.called.append(method)
        stream, self._next = self._next, self._next + 2
        body = encode(
            {
                1: service,
                2: method,
                3: encode(request),
                4: timeout_ns,
                5: [{1: key, 2: value} for key, value in metadata],
            }
        )
        future = self._waiting[stream] = asyncio.get_running_loop().create_future()
        await self._send(struct.pack(">IIBB", len(body), stream, REQUEST, self._flags) + body)
        kind, payload = await future
        assert kind == RESPONSE
        response = decode(payload)
        if 1 in response:
            status = decode(response[1][0])
            if code := status.get(1, [0])[0]:
                raise Status(code, status.get(2, [b""])[0].decode())
        return decode(response.get(2, [b""])[0])

    async def _send(self, frame: bytes) -> None:
        async with self._sending:
            for at in range(0, len(frame), self._pieces):
                await asyncio.get_running_loop().sock_sendall(self._socket, frame[at : at + self._pieces])

    async def _read(self) -> None:
        while True:
            size, stream, kind, _flags = struct.unpack(">IIBB", await self._exactly(10))
            self._waiting.pop(stream).set_result((kind, await self._exactly(size)))

    async def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            chunk = await asyncio.get_running_loop().sock_recv(self._socket, size - len(data))
            if not chunk:
                raise ConnectionResetError
            data += chunk
        return data

    async def aclose(self) -> None:
        """Hang up; calls that still wait for an answer are cancelled."""
        for future in self._waiting.values():
            future.cancel()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._socket.close()
