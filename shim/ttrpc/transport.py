"""asyncio glue under server and channel: one `Link` per connection, one `Inbox` per stream that has a reader.

A slow reader of one stream stops the reading of the whole connection (ttrpc has no flow control of its own),
for one second at most: then the stream fails, as in ttrpc-go, and the others go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, Protocol, TypeVar, cast

from shim.errors import ResourceExhausted, ShimError

from . import status

Event = TypeVar("Event")

INBOX_MESSAGES = 64  # unread messages of one stream before its connection is no longer read
PATIENCE_S = 1.0


class Connection(Protocol[Event]):
    """What both pure ends have in common."""

    outgoing: bytearray

    def receive(self, data: bytes) -> list[Event]: ...


class Link(asyncio.Protocol, Generic[Event]):
    """One connection on the loop: feeds what arrives to the pure end, writes what that wants to send.

    Subclasses take the events (`on_event`) and the end (`on_lost`)."""

    reads_while_blocked = True  # whether to read while the peer does not take what we send

    def __init__(self, connection: Connection[Event]) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._held: dict[Inbox, asyncio.TimerHandle] = {}
        self.lost = asyncio.Event()

    def on_event(self, event: Event) -> None:
        raise NotImplementedError

    def on_lost(self) -> None:
        """The connection is gone, by either end. Called once."""
        raise NotImplementedError

    @property
    def connected(self) -> bool:
        """The connection was made and is not lost."""
        return self._transport is not None and not self.lost.is_set()

    @property
    def closing(self) -> bool:
        """Nothing can be sent (any more)."""
        return self._transport is None or self._transport.is_closing()

    def flush(self) -> None:
        """Hand what is to be sent to the transport."""
        outgoing = self._connection.outgoing
        if outgoing:
            if self._transport and not self._transport.is_closing():
                self._transport.write(bytes(outgoing))
            outgoing.clear()

    async def drain(self) -> None:
        """Until the peer takes what was written. Raises Unavailable when the connection is gone."""
        while not self._writable.is_set():  # of many that wake up, the first may fill the buffer again
            await self._writable.wait()
        if self.closing:
            raise status.closed()

    def close(self) -> None:
        """Send what is buffered, then close."""
        if self._transport:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport:
            self._transport.abort()

    def hold(self, inbox: Inbox) -> None:
        """Stop reading until `inbox` is emptier; fail it if that takes too long."""
        if inbox not in self._held and self._transport:
            loop = asyncio.get_running_loop()
            self._held[inbox] = loop.call_later(PATIENCE_S, self._overflow, inbox)
            self._adjust_reading()

    def release(self, inbox: Inbox) -> None:
        """`inbox` has room again, or nobody reads it any more."""
        timer = self._held.pop(inbox, None)
        if timer:
            timer.cancel()
            self._adjust_reading()

    def _adjust_reading(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._held or not (self._writable.is_set() or self.reads_while_blocked):
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _overflow(self, inbox: Inbox) -> None:
        inbox.fail(ResourceExhausted("ttrpc: stream buffer full: its messages were not read"))
        self.release(inbox)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for event in self._connection.receive(data):
            self.on_event(event)
        self.flush()

    def pause_writing(self) -> None:
        self._writable.clear()
        self._adjust_reading()

    def resume_writing(self) -> None:
        self._writable.set()
        self._adjust_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        for timer in self._held.values():
            timer.cancel()
        self._held.clear()
        self.lost.set()
        self.on_lost()


class Inbox:
    """The messages of one stream on their way to one reader, and how the stream ended."""

    def __init__(self, link: Link[Event]) -> None:
        self._link = link
        self._messages: deque[bytes] = deque()
        self._ended = False
        self._error: ShimError | None = None
        self._arrived = asyncio.Event()

    def put(self, message: bytes) -> None:
        if self._ended:
            return
        self._messages.append(message)
        self._arrived.set()
        if len(self._messages) > INBOX_MESSAGES:
            self._link.hold(self)

    def end(self) -> None:
        """No more messages. Only the first of `end` and `fail` counts."""
        self._ended = True
        self._arrived.set()

    def fail(self, error: ShimError) -> None:
        """No more messages: the reader gets those that are here, then `error`."""
        if not self._ended:
            self._ended, self._error = True, error
            self._arrived.set()

    async def get(self) -> bytes | None:
        """The next message, None at the end. Raises what the stream failed with."""
        while not self._messages:
            if self._error:
                raise self._error
            if self._ended:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        message = self._messages.popleft()
        if len(self._messages) <= INBOX_MESSAGES:
            self._link.release(self)
        return message

    def discard(self) -> None:
        """The reader has gone."""
        self._ended = True
        self._messages.clear()
        self._link.release(self)
