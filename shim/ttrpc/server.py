"""A ttrpc server on the loop: any number of listening sockets, every call a task of its own.

Answers leave in the order in which handlers finish. The client's deadline ends a handler; so does the loss of
its connection, and of no other. Errors become statuses (see `status`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

from shim.errors import Canceled, DeadlineExceeded, Internal, InvalidArgument, Unimplemented
from shim.log import Log

from . import status
from .connection import (
    MessageReceived,
    MessagesEnded,
    Metadata,
    Request,
    RequestReceived,
    ServerConnection,
    ServerEvent,
)
from .service import Method, Servable, Service, from_grpclib
from .transport import Inbox, Link


class Call(NamedTuple):
    """The call that a handler answers. `deadline` is in loop time, None without one."""

    service: str
    method: str
    metadata: Metadata
    deadline: float | None


current_call: ContextVar[Call] = ContextVar("current_call")
"""Set in the task of every handler."""


class Server:
    """Serves `services`, either `Service`s or generated grpclib ones. Calls are logged at level debug,
    handlers that break at level error. With `same_user`, Unix clients must have our effective uid and gid."""

    def __init__(
        self, services: Iterable[Service | Servable], log: Log | None = None, *, same_user: bool = False
    ) -> None:
        tables = [item if isinstance(item, Service) else from_grpclib(item) for item in services]
        self._services = {service.name: service.methods for service in tables}
        self._log = log
        self._same_user = same_user
        self._listeners: list[asyncio.Server] = []
        self._links: set[_ServerLink] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Accept on a listening stream socket (AF_UNIX, AF_VSOCK) from now on; returns at once. The socket is
        the server's from here."""
        server = await asyncio.get_running_loop().create_server(self.link, sock=listener)
        self._listeners.append(server)

    async def serve_connection(self, connected: socket.socket) -> None:
        """Serve one connected stream socket, which is the server's from here; returns at once."""
        await asyncio.get_running_loop().connect_accepted_socket(self.link, connected)

    def link(self) -> asyncio.Protocol:
        """The protocol of a new connection, for any asyncio transport."""
        return _ServerLink(self)

    async def aclose(self, timeout_s: float = 2.0) -> None:
        """Stop listening, cancel all handlers but the calling one, send what is buffered and close. What does
        not end within `timeout_s` is cut off. Idempotent."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        links = list(self._links)
        tasks = {task for link in links for task in link.tasks} - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        deadline = asyncio.get_running_loop().time() + timeout_s
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for link in links:
            link.close()
        try:
            async with asyncio.timeout_at(deadline):
                for link in links:
                    await link.lost.wait()
        except TimeoutError:
            for link in links:
                link.abort()

    def find(self, request: Request) -> Method:
        """The method a request names. Raises Unimplemented."""
        service = self._services.get(request.service)
        if service is None:
            raise Unimplemented(f"service {request.service}")
        method = service.get(request.method)
        if method is None:
            raise Unimplemented(f"method {request.method}")
        return method

    def admit(self, link: _ServerLink, transport: asyncio.BaseTransport) -> bool:
        """Whether a new connection may stay; if so it is ours to close."""
        peer = transport.get_extra_info("socket")
        if self._same_user and peer is not None and peer.family == socket.AF_UNIX:
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
            _, uid, gid = struct.unpack("iII", credentials)
            if (uid, gid) != (os.geteuid(), os.getegid()):
                if self._log:
                    self._log.warning("ttrpc connection of another user refused", uid=uid, gid=gid)
                return False
        self._links.add(link)
        return True

    def forget(self, link: _ServerLink) -> None:
        self._links.discard(link)

    def log_end(self, request: Request, error: BaseException | None) -> None:
        """Log the end of a call."""
        if self._log is None:
            return
        code, message = (0, "") if error is None else status.from_exception(error)
        log = self._log.bind(service=request.service, method=request.method)
        if error is None or status.is_expected(error):
            log.debug("ttrpc call", code=code, error=message)
        else:
            import traceback  # slow to import, and seldom needed

            log.error("ttrpc handler failed", error=message, trace="".join(traceback.format_exception(error)))


class _ServerLink(Link[ServerEvent]):
    """One client's connection and the handlers of its calls. While a client does not take its replies it is not
    read and no handler of it starts, so that they cannot pile up."""

    reads_while_blocked = False

    def __init__(self, server: Server) -> None:
        self.connection = ServerConnection()
        super().__init__(self.connection)
        self._server = server
        self._streams: dict[int, _ServerStream] = {}

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        return [stream.task for stream in self._streams.values() if stream.task]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not self._server.admit(self, transport):
            self.abort()

    def on_lost(self) -> None:
        self._server.forget(self)
        for task in self.tasks:
            task.cancel()

    def on_event(self, event: ServerEvent) -> None:
        if isinstance(event, RequestReceived):
            self._open(event)
            return
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return  # answered since it was read, in the same batch
        if isinstance(event, MessageReceived):
            stream.inbox.put(event.payload)
        elif isinstance(event, MessagesEnded):
            stream.inbox.end()
        elif stream.task:
            stream.task.cancel()

    def _open(self, event: RequestReceived) -> None:
        stream_id, request = event.stream_id, event.request
        try:
            method = self._server.find(request)
        except Unimplemented as err:
            self.connection.respond(stream_id, err.code, err.message)
            self._server.log_end(request, err)
            return
        stream = _ServerStream(self, stream_id, method)
        # An empty message has no bytes, so a request without payload may still carry the one message due.
        if request.payload or not method.client_streaming:
            stream.inbox.put(request.payload)
        if not (method.client_streaming and event.messages_follow):
            stream.inbox.end()
        self._streams[stream_id] = stream
        stream.task = asyncio.get_running_loop().create_task(self._run(stream, request))
        # A task that is cancelled before it began runs no code of its own.
        stream.task.add_done_callback(lambda _: self._streams.pop(stream_id, None))

    async def _run(self, stream: _ServerStream, request: Request) -> None:
        deadline = None
        if request.timeout_ns:
            deadline = asyncio.get_running_loop().time() + request.timeout_ns / 1e9
        current_call.set(Call(request.service, request.method, request.metadata, deadline))
        timeout = asyncio.timeout_at(deadline)
        error: BaseException | None = None
        try:
            async with timeout:
                await self.drain()
                await stream.method.run(stream)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task and task.cancelling():
                # The client has gone, or the server closes: tell it if it still listens.
                stream.finish(Canceled("context canceled"))
                raise
            # The handler waited for something that was cancelled, which is its failure as any other.
            error = Canceled("the operation was cancelled")
        except Exception as err:
            expired = isinstance(err, TimeoutError) and timeout.expired()
            error = DeadlineExceeded("context deadline exceeded") if expired else err
        stream.finish(error)
        self._server.log_end(request, error)


class _ServerStream:
    """The server's end of one call (`service.Stream`)."""

    def __init__(self, link: _ServerLink, stream_id: int, method: Method) -> None:
        self.inbox = Inbox(link)
        self.task: asyncio.Task[None] | None = None
        self.method = method
        self._link = link
        self._id = stream_id
        self._reply: bytes | None = None

    async def recv_message(self) -> Any:
        payload = await self.inbox.get()
        if payload is None:
            return None
        try:
            return self.method.decode(payload)
        except Exception as err:
            # Whatever a decoder raises, the bytes were at fault.
            raise InvalidArgument(f"unmarshal request error: {err}") from err

    async def send_message(self, message: Any) -> None:
        payload = self.method.encode(message)
        if not self.method.server_streaming:
            if self._reply is not None:
                raise Internal("a unary method has one reply")
            self._reply = payload
            return
        self._link.connection.send_message(self._id, payload)
        self._link.flush()
        await self._link.drain()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (message := await self.recv_message()) is not None:
            yield message

    def finish(self, error: BaseException | None) -> None:
        """Send how the call ended; without effect if the client has been told already."""
        connection = self._link.connection
        self.inbox.discard()
        if error is None and self._reply is None and not self.method.server_streaming:
            error = Internal("the method gave no reply")
        if error is not None:
            connection.respond(self._id, *status.from_exception(error))
        elif self._reply is not None:
            connection.respond(self._id, 0, "", self._reply)
        else:
            connection.end_messages(self._id)
        self._link.flush()
