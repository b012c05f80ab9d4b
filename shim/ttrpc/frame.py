"""ttrpc frames: the ten-byte header and the length limit. Pure: bytes in, frames out.

     0               4               8      9      10
    +---------------+---------------+------+------+----------------
    | data length   | stream id     | type | flags| data ...
    +---------------+---------------+------+------+----------------
      uint32, big endian              uint8  uint8  <= 4 MiB

A frame that announces more data than the limit does not end the connection: its data is read and thrown away,
and the frame is reported without it, so that the peer can be told on that stream.

Source: containerd/ttrpc PROTOCOL.md, channel.go.
"""

from __future__ import annotations

from struct import Struct
from typing import NamedTuple

from shim.errors import ResourceExhausted

MAX_DATA = 4 << 20  # bytes in one frame after its header

REQUEST, RESPONSE, DATA = 1, 2, 3

REMOTE_CLOSED = 1  # the sender sends nothing more on this stream
REMOTE_OPEN = 2  # the sender will send data on this stream
NO_DATA = 4  # a data frame that carries no message (an empty message has no bytes either)

_HEADER = Struct(">IIBB")


class Frame(NamedTuple):
    """One frame. `oversized` is 0, or the length announced by a frame whose data was thrown away."""

    stream_id: int
    type: int
    flags: int = 0
    data: bytes = b""
    oversized: int = 0


def too_long(length: int, limit: int = MAX_DATA) -> str:
    """The words for a message of `length` bytes, which is over the limit."""
    return f"message length {length} exceed maximum message size of {limit}"


def encode(frame: Frame) -> bytes:
    """Raises ResourceExhausted when the data is over the limit."""
    if len(frame.data) > MAX_DATA:
        raise ResourceExhausted(too_long(len(frame.data)))
    return _HEADER.pack(len(frame.data), frame.stream_id, frame.type, frame.flags) + frame.data


class Decoder:
    """Frames from a byte stream cut anywhere, none with more data than `limit`. Holds at most one frame's data and
    what `feed` was given."""

    def __init__(self, limit: int = MAX_DATA) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._skip = 0  # bytes of an oversized frame still to be thrown away

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are complete with `data`."""
        if self._skip:
            skipped = min(self._skip, len(data))
            self._skip -= skipped
            data = data[skipped:]
        buffer = self._buffer
        buffer += data
        frames = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            length, stream_id, type_, flags = _HEADER.unpack_from(buffer, start)
            begin = start + _HEADER.size
            end = begin + length
            if length > self.limit:
                frames.append(Frame(stream_id, type_, flags, oversized=length))
                self._skip = max(0, end - len(buffer))
            elif end > len(buffer):
                break
            else:
                frames.append(Frame(stream_id, type_, flags, bytes(buffer[begin:end])))
            start = min(end, len(buffer))
        del buffer[:start]
        return frames
