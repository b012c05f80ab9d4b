"""A ttrpc call made by hand, byte by byte: what containerd sends, without containerd or our own code between.

Frame: data length (4 bytes, big endian), stream id (4), type (1: request 1, response 2), flags (1).
Request: 1 service, 2 method, 3 payload, 4 timeout in ns. Response: 1 status {1 code, 2 message}, 2 payload.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    code: int  # gRPC status
    message: str
    fields: dict[int, int | bytes]  # of the reply, by field number; a repeated field's last one


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def message(**fields: str | bytes | int) -> bytes:
    """A protobuf message; f1="x" is field 1."""
    out = b""
    for name, value in fields.items():
        number = int(name[1:])
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def parse(data: bytes) -> dict[int, int | bytes]:
    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not data[at - 1] & 0x80:
                return value, at

    found: dict[int, int | bytes] = {}
    at = 0
    while at < len(data):
        key, at = number(at)
        value, at = number(at)
        if key & 7 == 2:
            found[key >> 3] = data[at : at + value]
            at += value
        else:
            assert key & 7 == 0, f"wire type {key & 7}"
            found[key >> 3] = value
    return found


class Task:
    """The Task service of a shim, on a connection of its own."""

    def __init__(self, address: str, timeout: float = 10, service: str = "containerd.task.v2.Task") -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(address)
        self._service, self._stream = service, -1

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Task:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, **fields: str | bytes | int) -> Answer:
        """One unary call; the fields are named by their numbers, f1="id"."""
        self._stream += 2
        request = message(f1=self._service, f2=method, f3=message(**fields))
        self._socket.sendall(struct.pack(">IIBB", len(request), self._stream, 1, 0) + request)
        length, stream, kind, _ = struct.unpack(">IIBB", self._receive(10))
        assert (stream, kind) == (self._stream, 2), (stream, kind)
        response = parse(self._receive(length))
        status = response.get(1, b"")
        assert isinstance(status, bytes)
        error = parse(status)
        payload, text, code = response.get(2, b""), error.get(2, b""), error.get(1, 0)
        assert isinstance(payload, bytes) and isinstance(text, bytes) and isinstance(code, int)
        return Answer(code, text.decode(), parse(payload) if code == 0 else {})

    def _receive(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            more = self._socket.recv(length - len(data))
            assert more, "the shim closed the connection"
            data += more
        return data
