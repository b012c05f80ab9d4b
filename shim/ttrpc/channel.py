"""A ttrpc client on the loop. `Channel` is to betterproto's stubs what `grpclib.client.Channel` is.

A call fails with the class of `shim.errors` that its status names; with DeadlineExceeded when its time is up
here, whatever the server does; with Unavailable when the connection is lost, at once for all pending calls.
ttrpc cannot cancel: a call that is given up goes on in the server until its own deadline.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from shim import errors

from . import status
from .connection import ClientConnection, ClientEvent, MessageReceived, Metadata, Request
from .frame import MAX_DATA
from .transport import Inbox, Link

MetadataLike = Mapping[str, Any] | Iterable[tuple[str, Any]]


class _ClientLink(Link[ClientEvent]):
    """The connection of a channel, and who waits for what on it."""

    def __init__(self, max_reply: int) -> None:
        self.connection = ClientConnection(max_reply)
        super().__init__(self.connection)
        self.inboxes: dict[int, Inbox] = {}

    def on_event(self, event: ClientEvent) -> None:
        inbox = self.inboxes.get(event.stream_id)
        if inbox is None:
            return  # given up since it was read, in the same batch
        if isinstance(event, MessageReceived):
            inbox.put(event.payload)
            return
        del self.inboxes[event.stream_id]
        if event.code:
            inbox.fail(errors.from_status(event.code, event.message))
            return
        if event.payload is not None:
            inbox.put(event.payload)
        inbox.end()

    def on_lost(self) -> None:
        for inbox in self.inboxes.values():
            inbox.fail(status.closed())
        self.inboxes.clear()


class Channel:
    """Calls over one connection; made by `connect` or, for any other asyncio transport, around `link()`. A reply of
    more than `max_reply` bytes fails its call with ResourceExhausted."""

    def __init__(self, max_reply: int = MAX_DATA) -> None:
        self._link = _ClientLink(max_reply)

    @classmethod
    async def connect(cls, connected: socket.socket, max_reply: int = MAX_DATA) -> Channel:
        """A channel over a connected stream socket (AF_UNIX, AF_VSOCK), which is the channel's from here, also
        when this fails."""
        channel = cls(max_reply)
        try:
            await asyncio.get_running_loop().create_connection(channel.link, sock=connected)
        except BaseException:
            connected.close()
            raise
        return channel

    @classmethod
    async def dial(cls, address: str) -> Channel:
        """A channel to a Unix socket, a path or `unix://<path>`; Unavailable if nobody listens."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address.removeprefix("unix://"))
            return await cls.connect(sock)
        except OSError as error:
            sock.close()
            raise errors.Unavailable(f"{address}: {error.strerror or error}") from error
        except BaseException:
            sock.close()
            raise

    def link(self) -> asyncio.Protocol:
        """The protocol of the channel's connection."""
        return self._link

    @property
    def closed(self) -> bool:
        """No call can be made (any more)."""
        return self._link.closing

    async def wait_closed(self) -> None:
        """Until the connection is gone, by either end."""
        await self._link.lost.wait()

    def close(self) -> None:
        """Close the connection; pending calls fail with Unavailable."""
        self._link.abort()

    async def aclose(self) -> None:
        """`close`, and wait until it is done."""
        self._link.abort()
        if self._link.connected:
            await self._link.lost.wait()

    async def call(
        self,
        service: str,
        method: str,
        payload: bytes = b"",
        *,
        timeout_s: float | None = None,
        metadata: MetadataLike = (),
    ) -> bytes:
        """One unary call, coded by the caller."""
        stream = Stream(self._link, service, method, bytes, bytes, timeout_s=timeout_s, metadata=metadata)
        async with stream:
            await stream.send_message(payload, end=True)
            reply: bytes = await stream.recv_message()
            return reply

    def request(
        self,
        name: str,
        cardinality: Any,
        request_type: type[Any],
        reply_type: type[Any],
        *,
        timeout: float | None = None,
        deadline: Any = None,
        metadata: MetadataLike | None = None,
    ) -> Stream:
        """What generated stubs call. `name` is "/service/Method", `cardinality` grpclib's, the types have
        `SerializeToString` and `FromString`. Of `timeout`, in seconds, and grpclib's `deadline` the nearer
        counts."""
        _, service, method = name.split("/")
        limits = [limit for limit in (timeout, deadline and deadline.time_remaining()) if limit is not None]
        return Stream(
            self._link,
            service,
            method,
            lambda message: bytes(message.SerializeToString()),
            reply_type.FromString,
            timeout_s=min(limits) if limits else None,
            metadata=metadata or (),
            client_streaming=cardinality.client_streaming,
            server_streaming=cardinality.server_streaming,
        )


class Stream:
    """The client's end of one call, used as grpclib's: a context manager around sending and receiving.

    The time runs from the construction on."""

    def __init__(
        self,
        link: _ClientLink,
        service: str,
        method: str,
        encode: Callable[[Any], bytes],
        decode: Callable[[bytes], Any],
        *,
        timeout_s: float | None,
        metadata: MetadataLike,
        client_streaming: bool = False,
        server_streaming: bool = False,
    ) -> None:
        self._link = link
        self._service, self._method = service, method
        self._encode, self._decode = encode, decode
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
        self._metadata = _metadata(metadata)
        self._client_streaming, self._server_streaming = client_streaming, server_streaming
        self._inbox = Inbox(link)
        self._id = 0  # 0 until opened
        self._ended = False

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inbox.discard()
        self._link.inboxes.pop(self._id, None)
        self._link.connection.forget(self._id)

    async def send_request(self) -> None:
        """Open the call before there is a message to send (only where the client streams)."""
        if not self._id:
            self._open(b"")
            await self._within(self._link.drain())

    async def send_message(self, message: Any, end: bool = False) -> None:
        """Send the request, or one more of its messages; `end` after it."""
        payload = self._encode(message)
        if not self._client_streaming:
            if self._id:
                raise errors.Internal("ttrpc: a unary request is one message")
            self._open(payload)
        else:
            if not self._id:
                self._open(b"")
            self._link.connection.send_message(self._id, payload)
            self._link.flush()
            if end:
                await self.end()
        await self._within(self._link.drain())

    async def end(self) -> None:
        """No more messages from here. Idempotent."""
        if self._client_streaming and not self._ended:
            if not self._id:
                self._open(b"")
            self._ended = True
            self._link.connection.end_messages(self._id)
            self._link.flush()

    async def recv_message(self) -> Any:
        """The reply, or the next of its messages; None when a streaming reply has ended. Raises how the call
        failed, and Internal for a reply that cannot be decoded."""
        payload = await self._within(self._inbox.get())
        if payload is None:
            if not self._server_streaming:
                raise errors.Internal("ttrpc: the call ended without a reply")
            return None
        try:
            return self._decode(payload)
        except Exception as err:
            # Whatever a decoder raises, the bytes were at fault.
            raise errors.Internal(f"ttrpc: undecodable reply of {self._method}: {err}") from err

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.recv_message()) is not None:
            yield message

    def _open(self, payload: bytes) -> None:
        if self._link.closing:
            raise status.closed()
        # 0 on the wire would be "no deadline".
        timeout_ns = 0 if self._timeout_s is None else max(1, int(self._timeout_s * 1e9))
        self._id = self._link.connection.open(
            Request(self._service, self._method, payload, timeout_ns, self._metadata),
            sends_messages=self._client_streaming,
            wants_messages=self._server_streaming,
        )
        self._link.inboxes[self._id] = self._inbox
        self._link.flush()

    async def _within(self, step: Any) -> Any:
        timeout = asyncio.timeout_at(self._deadline)
        try:
            async with timeout:
                return await step
        except TimeoutError as err:
            if timeout.expired():
                late = f"{self._service}/{self._method}: no answer within {self._timeout_s:g} s"
                raise errors.DeadlineExceeded(late) from err
            raise


def _metadata(given: MetadataLike) -> Metadata:
    """Metadata as it goes on the wire; grpclib's forms are accepted."""
    pairs = given.items() if isinstance(given, Mapping) else given
    return tuple(
        (str(key), value.decode() if isinstance(value, bytes) else str(value)) for key, value in pairs
    )
