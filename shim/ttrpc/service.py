"""What a server serves: services as tables of methods, made from either of two forms.

`from_grpclib(object)` takes a service as betterproto generates it (anything with grpclib's `__mapping__()`).
`from_schema(...)` is the light form of the guest: async functions from dict to dict, coded by `shim.wire`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Protocol

from shim import wire

Handler = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any] | None]]


class Stream(Protocol):
    """The server's end of one call, as grpclib's handlers use theirs. All messages are decoded."""

    async def recv_message(self) -> Any:
        """The next message (of a unary call: the request), None when there are no more."""

    async def send_message(self, message: Any) -> None:
        """The reply, or one more message of a streaming reply."""

    def __aiter__(self) -> AsyncIterator[Any]: ...


class Method(NamedTuple):
    """One RPC. `decode` raises anything for bytes that are no such message."""

    run: Callable[[Stream], Awaitable[None]]
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    client_streaming: bool = False
    server_streaming: bool = False


class Service(NamedTuple):
    """A service by its full name on the wire (`containerd.task.v2.Task`)."""

    name: str
    methods: Mapping[str, Method]


class Servable(Protocol):
    """A grpclib service: `__mapping__` gives {"/service/Method": Handler(func, cardinality, types...)}."""

    def __mapping__(self) -> Mapping[str, Any]: ...


def unary(
    handler: Callable[[Any], Awaitable[Any]],
    decode: Callable[[bytes], Any],
    encode: Callable[[Any], bytes],
) -> Method:
    """A method from a plain async function of the request."""

    async def run(stream: Stream) -> None:
        await stream.send_message(await handler(await stream.recv_message()))

    return Method(run, decode, encode)


def from_schema(
    name: str,
    messages: wire.Schema,
    methods: Mapping[str, tuple[str, str]],
    handlers: Mapping[str, Handler],
) -> Service:
    """A service of unary methods over dicts. `methods` is the row of the generated SERVICES for `name`;
    `handlers` has those that are implemented. A handler may return None for an empty reply."""

    def method(handler: Handler, request: str, reply: str) -> Method:
        return unary(
            handler,
            lambda data: wire.decode(messages, request, data),
            lambda fields: wire.encode(messages, reply, fields or {}),
        )

    return Service(name, {key: method(handler, *methods[key]) for key, handler in handlers.items()})


def from_grpclib(servable: Servable, name: str | None = None) -> Service:
    """A generated service; `name` serves it under another name than its own."""
    methods: dict[str, Method] = {}
    own_name = ""
    for path, handler in servable.__mapping__().items():
        _, own_name, method = path.split("/")
        function, cardinality, request_type, _ = handler
        methods[method] = Method(
            function,
            request_type.FromString,
            lambda message: bytes(message.SerializeToString()),
            cardinality.client_streaming,
            cardinality.server_streaming,
        )
    return Service(name or own_name, methods)
