"""A connection without sockets, for tests: two asyncio transports joined in one loop.

    channel = connect(server)        # a Channel to a Server in the same process
    pair(protocol, other_protocol)   # or any two protocols

Bytes written are delivered on the next turn of the loop, cut as the writer cut them; pausing works both ways.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from .channel import Channel
from .server import Server

HIGH_WATER = 65536  # bytes not yet taken by the peer before the writer is told to pause


class MemoryTransport(asyncio.Transport):
    """One end of a pair."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._protocol = protocol
        self._peer: MemoryTransport = self
        self._incoming: deque[bytes] = deque()  # written by the peer, not yet delivered
        self._waiting = 0  # bytes in _incoming
        self._reading = True
        self._closing = False
        self._eof = False  # the peer has closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return self._closing

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        if self._closing or not data:
            return
        peer = self._peer
        peer._incoming.append(bytes(data))
        before, peer._waiting = peer._waiting, peer._waiting + len(data)
        if before <= HIGH_WATER < peer._waiting:
            self._protocol.pause_writing()
        peer._schedule()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._peer._eof = True
            self._peer._schedule()
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    abort = close

    def _schedule(self) -> None:
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        if self._closing:
            return
        if self._incoming:
            if not self._reading:
                return
            data = self._incoming.popleft()
            before, self._waiting = self._waiting, self._waiting - len(data)
            if self._waiting <= HIGH_WATER < before and not self._peer._closing:
                self._peer._protocol.resume_writing()
            self._protocol.data_received(data)
            self._schedule()
        elif self._eof:
            self.close()


def pair(one: asyncio.Protocol, other: asyncio.Protocol) -> tuple[MemoryTransport, MemoryTransport]:
    """Join two protocols."""
    left, right = MemoryTransport(one), MemoryTransport(other)
    left._peer, right._peer = right, left
    one.connection_made(left)
    other.connection_made(right)
    return left, right


def connect(server: Server) -> Channel:
    """A channel to `server`."""
    channel = Channel()
    pair(channel.link(), server.link())
    return channel
