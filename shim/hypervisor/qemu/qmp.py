"""QMP, QEMU's control protocol: JSON objects, one per line, over a stream socket.

    QEMU                                        we
    {"QMP": {...}}                 greeting
                                                {"execute": "qmp_capabilities", "id": 1}
    {"return": {}, "id": 1}        or  {"error": {"class": ..., "desc": ...}, "id": 1}
    {"event": "SHUTDOWN", "data": {...}, "timestamp": {...}}        at any time

`Decoder` and `encode` do no IO. `QmpClient` is the asyncio side: one command at a time (QEMU answers in order
and fds travel by "the fd of the last message"), each with a deadline; replies are matched by id, so an answer
that comes after its deadline is dropped and does no harm.

Source: QEMU docs/interop/qmp-spec.rst; `getfd`: qapi/misc.json.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shim.errors import DeadlineExceeded, FailedPrecondition, Internal, Unavailable
from shim.value import Value

Json = Mapping[str, Any]

_READ_SIZE = 65536
_MESSAGE_LIMIT = 1 << 20


class QmpProtocolError(Internal):
    """QEMU sent something that is no QMP message."""


class QmpError(FailedPrecondition):
    """QEMU refused a command; the message has its words."""


class Greeting(Value):
    """The first message; `version` such as "7.2.22"."""

    version: str


class Reply(Value):
    """The answer to command `id`: `value`, or `error` in QEMU's words."""

    id: int | None
    value: Any = None
    error: str | None = None


class Event(Value):
    name: str
    data: Json


Message = Greeting | Reply | Event


def encode(command: str, arguments: Json, command_id: int) -> bytes:
    return json.dumps({"execute": command, "arguments": arguments, "id": command_id}).encode() + b"\n"


class Decoder:
    """Bytes in, messages out. After a `QmpProtocolError` the stream is unusable."""

    def __init__(self, limit: int = _MESSAGE_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages completed by `data`. Raises QmpProtocolError for garbage or an endless message."""
        self._buffer += data
        messages = []
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end]).strip()
            del self._buffer[: end + 1]
            if line:
                messages.append(_parse(line))
        if len(self._buffer) > self._limit:
            raise QmpProtocolError(f"QMP message longer than {self._limit} bytes")
        return messages


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as err:
        raise QmpProtocolError(f"QMP message is no JSON: {line[:80]!r}") from err
    match message:
        case {"QMP": {"version": {"qemu": {"major": major, "minor": minor, "micro": micro}}}}:
            return Greeting(f"{major}.{minor}.{micro}")
        case {"event": str(name)}:
            data = message.get("data", {})
            return Event(name, data if isinstance(data, dict) else {})
        case {"return": value}:
            return Reply(_id(message), value)
        case {"error": {"desc": str(description)}}:
            return Reply(_id(message), error=description)
    raise QmpProtocolError(f"not a QMP message: {line[:80]!r}")


def _id(message: Json) -> int | None:
    value = message.get("id")
    return value if type(value) is int else None  # True is an int, too


class QmpClient:
    """The control connection to one QEMU. Owns `sock`, our end of the socketpair QEMU inherited.

    `on_event` is called in the loop for every event. When QEMU goes away, a command in flight and all later
    ones raise Unavailable.
    """

    def __init__(self, sock: socket.socket, on_event: Callable[[Event], None]) -> None:
        self._sock, self._on_event = sock, on_event
        self._decoder = Decoder()
        self._busy = asyncio.Lock()
        self._last_id = 0
        self._reply: asyncio.Future[Reply] | None = None
        self._greeting: asyncio.Future[str] | None = None
        self._lost: Unavailable | QmpProtocolError | None = None
        self.version: tuple[int, ...] = ()  # once connected, such as (7, 2, 22)

    async def connect(self, timeout_s: float) -> str:
        """Wait for the greeting and leave negotiation mode; QEMU's version."""
        loop = asyncio.get_running_loop()
        self._greeting = loop.create_future()
        self._sock.setblocking(False)
        loop.add_reader(self._sock.fileno(), self._on_readable)
        try:
            async with asyncio.timeout(timeout_s):
                version = await self._greeting
        except TimeoutError:
            raise DeadlineExceeded(f"QEMU's control socket is silent after {timeout_s:g} s") from None
        self.version = tuple(map(int, version.split(".")))
        await self.execute("qmp_capabilities", timeout_s=timeout_s)
        return version

    async def execute(
        self, command: str, arguments: Json | None = None, *, fds: Sequence[int] = (), timeout_s: float = 10.0
    ) -> Any:
        """Run one command, with `fds` attached (they stay the caller's); what it returns.

        Raises QmpError with QEMU's words, DeadlineExceeded, or Unavailable when QEMU is gone. A command whose
        deadline passed may still take effect.
        """
        try:
            async with asyncio.timeout(timeout_s), self._busy:
                reply = await self._exchange(command, arguments or {}, fds)
        except TimeoutError:
            raise DeadlineExceeded(f"QMP {command}: no answer in {timeout_s:g} s") from None
        if reply.error is not None:
            raise QmpError(f"QMP {command}: {reply.error}")
        return reply.value

    def close(self) -> None:
        """Idempotent; a command in flight raises Unavailable."""
        self._lose(Unavailable("the control connection to QEMU is closed"))

    async def _exchange(self, command: str, arguments: Json, fds: Sequence[int]) -> Reply:
        if self._lost is not None:
            raise self._lost
        loop = asyncio.get_running_loop()
        self._last_id += 1
        self._reply = loop.create_future()
        data = encode(command, arguments, self._last_id)
        try:
            # Nothing else is in the socket's buffer, since the last command was answered: this cannot block.
            sent = socket.send_fds(self._sock, [data], list(fds)) if fds else 0
            await loop.sock_sendall(self._sock, data[sent:])
            return await self._reply
        except OSError as err:
            raise Unavailable(f"QEMU's control socket: {err.strerror}") from err
        finally:
            self._reply = None

    def _on_readable(self) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
            messages = self._decoder.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except QmpProtocolError as err:
            self._lose(err)
            return
        except OSError as err:
            self._lose(Unavailable(f"QEMU's control socket: {err.strerror}"))
            return
        if not data:
            self._lose(Unavailable("QEMU closed its control socket"))
        for message in messages:
            self._on_message(message)

    def _on_message(self, message: Message) -> None:
        match message:
            case Event():
                self._on_event(message)
            case Greeting(version):
                if self._greeting is not None and not self._greeting.done():
                    self._greeting.set_result(version)
            case Reply(id=command_id):
                # An error without id answers something QEMU could not parse: the command in flight.
                if self._reply is not None and not self._reply.done() and command_id in (self._last_id, None):
                    self._reply.set_result(message)

    def _lose(self, error: Unavailable | QmpProtocolError) -> None:
        if self._lost is not None:
            return
        self._lost = error
        asyncio.get_running_loop().remove_reader(self._sock.fileno())
        self._sock.close()
        for waiting in (self._greeting, self._reply):
            if waiting is not None and not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # whoever waits gets it; nobody has to
