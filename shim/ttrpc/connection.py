"""The two ends of a ttrpc connection. Pure: bytes in, events out; what is to be sent piles up in `outgoing`.

A call opens a stream, numbered by the client: odd, each greater than the last. A unary call is one request
frame and one response frame. A streaming call goes on with data frames, each a bare message; either end
closes its direction by a flag, and the server's close ends the stream. There is no cancel on the wire.

    client                                  server
    REQUEST [remote open|remote closed] ->  RequestReceived
    DATA ...                            ->  MessageReceived
    DATA [remote closed, no data]       ->  MessagesEnded
    MessageReceived                     <-  DATA ...
    StreamEnded(code, payload)          <-  RESPONSE, or DATA [remote closed, no data]

A peer's mistake never raises here: the server answers it with a status on the stream it happened on, as
ttrpc-go does, and the client fails the stream it happened on. Frames of unknown types are ignored.

Source: containerd/ttrpc PROTOCOL.md, server.go, client.go.
"""

from __future__ import annotations

from typing import NamedTuple

from shim import wire
from shim.errors import Internal, InvalidArgument, ResourceExhausted, Unavailable

from . import frame
from .frame import Frame
from .schema import MESSAGES

Metadata = tuple[tuple[str, str], ...]


class Request(NamedTuple):
    """What opens a stream. `timeout_ns` 0 = no deadline; a metadata key may occur several times."""

    service: str
    method: str
    payload: bytes
    timeout_ns: int = 0
    metadata: Metadata = ()


class RequestReceived(NamedTuple):
    """To the server. `messages_follow` is what the client's flags say; unary methods ignore it."""

    stream_id: int
    request: Request
    messages_follow: bool


class MessageReceived(NamedTuple):
    """To both."""

    stream_id: int
    payload: bytes


class MessagesEnded(NamedTuple):
    """To the server: the client sends no more messages."""

    stream_id: int


class StreamBroken(NamedTuple):
    """To the server: the client broke the rules on a live stream and has been told; the stream is gone."""

    stream_id: int


class StreamEnded(NamedTuple):
    """To the client: code 0 is success; `payload` is the reply, None if the end of a stream carried none."""

    stream_id: int
    code: int
    message: str
    payload: bytes | None


ServerEvent = RequestReceived | MessageReceived | MessagesEnded | StreamBroken
ClientEvent = MessageReceived | StreamEnded


class ServerConnection:
    """The server's end of one connection."""

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self._decoder = frame.Decoder()
        self._last_id = 0
        self._streams: dict[int, bool] = {}  # live streams: will the client send more messages?

    def receive(self, data: bytes) -> list[ServerEvent]:
        """Take what the client sent."""
        events: list[ServerEvent] = []
        for received in self._decoder.feed(data):
            if received.oversized:
                self._reject(
                    received.stream_id, ResourceExhausted(frame.too_long(received.oversized)), events
                )
            elif received.stream_id % 2 != 1:
                wrong = "StreamID must be odd for client initiated streams"
                self._reject(received.stream_id, InvalidArgument(wrong), events)
            elif received.type == frame.REQUEST:
                self._receive_request(received, events)
            elif received.type == frame.DATA:
                self._receive_data(received, events)
        return events

    def respond(self, stream_id: int, code: int, message: str = "", payload: bytes = b"") -> None:
        """End a stream by a response. A reply that is too long becomes RESOURCE_EXHAUSTED. Nothing is sent on
        a stream that is gone."""
        if self._streams.pop(stream_id, None) is None:
            return
        self._send_response(stream_id, code, message, payload)

    def send_message(self, stream_id: int, payload: bytes) -> None:
        """Send one message of a streaming reply. Raises ResourceExhausted if it is too long."""
        if stream_id in self._streams:
            self.outgoing += frame.encode(Frame(stream_id, frame.DATA, 0, payload))

    def end_messages(self, stream_id: int) -> None:
        """End a streaming reply with success."""
        if self._streams.pop(stream_id, None) is not None:
            flags = frame.REMOTE_CLOSED | frame.NO_DATA
            self.outgoing += frame.encode(Frame(stream_id, frame.DATA, flags))

    def _receive_request(self, received: Frame, events: list[ServerEvent]) -> None:
        stream_id = received.stream_id
        if stream_id <= self._last_id:
            wrong = "StreamID cannot be re-used and must increment"
            return self._reject(stream_id, InvalidArgument(wrong), events)
        self._last_id = stream_id
        try:
            fields = wire.decode(MESSAGES, "ttrpc.Request", received.data)
        except InvalidArgument as err:
            return self._reject(stream_id, InvalidArgument(f"unmarshal request error: {err}"), events)
        request = Request(
            fields.get("service", ""),
            fields.get("method", ""),
            fields.get("payload", b""),
            max(0, fields.get("timeout_nano", 0)),
            tuple((pair.get("key", ""), pair.get("value", "")) for pair in fields.get("metadata", ())),
        )
        messages_follow = bool(received.flags & frame.REMOTE_OPEN)
        self._streams[stream_id] = messages_follow
        events.append(RequestReceived(stream_id, request, messages_follow))
        return None

    def _receive_data(self, received: Frame, events: list[ServerEvent]) -> None:
        stream_id = received.stream_id
        if not self._streams.get(stream_id):
            return self._reject(stream_id, InvalidArgument("StreamID is no longer active"), events)
        if not received.flags & frame.NO_DATA:
            events.append(MessageReceived(stream_id, received.data))
        if received.flags & frame.REMOTE_CLOSED:
            self._streams[stream_id] = False
            events.append(MessagesEnded(stream_id))
        return None

    def _reject(
        self, stream_id: int, error: InvalidArgument | ResourceExhausted, events: list[ServerEvent]
    ) -> None:
        """Tell the client on the stream that it used, whether that is a live one or not."""
        if self._streams.pop(stream_id, None) is not None:
            events.append(StreamBroken(stream_id))
        self._send_response(stream_id, error.code, error.message, b"")

    def _send_response(self, stream_id: int, code: int, message: str, payload: bytes) -> None:
        status = {"code": code, "message": message} if code else None
        data = wire.encode(MESSAGES, "ttrpc.Response", {"status": status, "payload": payload})
        if len(data) > frame.MAX_DATA:
            status = {"code": ResourceExhausted.code, "message": frame.too_long(len(data))}
            data = wire.encode(MESSAGES, "ttrpc.Response", {"status": status})
        self.outgoing += frame.encode(Frame(stream_id, frame.RESPONSE, 0, data))


class ClientConnection:
    """The client's end of one connection; a reply of more than `max_reply` bytes fails its call."""

    def __init__(self, max_reply: int = frame.MAX_DATA) -> None:
        self.outgoing = bytearray()
        self._decoder = frame.Decoder(max_reply)
        self._next_id = 1
        self._streams: dict[int, bool] = {}  # live streams: may the server send messages?

    def open(self, request: Request, *, sends_messages: bool = False, wants_messages: bool = False) -> int:
        """Start a call and return its stream id. With `sends_messages` the client goes on to send messages
        and the request's payload must be empty; with `wants_messages` the reply is a stream of them.

        Raises ResourceExhausted when the request is too long, Unavailable when the ids are used up."""
        stream_id = self._next_id
        if stream_id >= 1 << 32:
            raise Unavailable("ttrpc: no stream ids left on this connection")
        fields = {
            "service": request.service,
            "method": request.method,
            "payload": request.payload,
            "timeout_nano": request.timeout_ns,
            "metadata": [{"key": key, "value": value} for key, value in request.metadata],
        }
        flags = 0
        if sends_messages:
            flags = frame.REMOTE_OPEN
        elif wants_messages:
            flags = frame.REMOTE_CLOSED
        data = wire.encode(MESSAGES, "ttrpc.Request", fields)
        self.outgoing += frame.encode(Frame(stream_id, frame.REQUEST, flags, data))
        self._next_id += 2
        self._streams[stream_id] = wants_messages
        return stream_id

    def send_message(self, stream_id: int, payload: bytes) -> None:
        """Send one message on a stream opened with `sends_messages`. Raises ResourceExhausted if it is too
        long."""
        self.outgoing += frame.encode(Frame(stream_id, frame.DATA, 0, payload))

    def end_messages(self, stream_id: int) -> None:
        """Send no more messages on a stream."""
        self.outgoing += frame.encode(Frame(stream_id, frame.DATA, frame.REMOTE_CLOSED | frame.NO_DATA))

    def forget(self, stream_id: int) -> None:
        """Give up a stream: what still comes for it is ignored."""
        self._streams.pop(stream_id, None)

    def receive(self, data: bytes) -> list[ClientEvent]:
        """Take what the server sent."""
        events: list[ClientEvent] = []
        for received in self._decoder.feed(data):
            stream_id = received.stream_id
            if stream_id not in self._streams:
                continue  # an answer to a call that was given up, or none of ours
            if received.oversized:
                wrong = frame.too_long(received.oversized, self._decoder.limit)
                self._fail(stream_id, ResourceExhausted(wrong), events)
            elif received.type == frame.RESPONSE:
                self._receive_response(stream_id, received.data, events)
            elif received.type == frame.DATA:
                if not self._streams[stream_id]:
                    self._fail(stream_id, Internal("ttrpc: a message where a response was due"), events)
                    continue
                if not received.flags & frame.NO_DATA:
                    events.append(MessageReceived(stream_id, received.data))
                if received.flags & frame.REMOTE_CLOSED:
                    del self._streams[stream_id]
                    events.append(StreamEnded(stream_id, 0, "", None))
        return events

    def _receive_response(self, stream_id: int, data: bytes, events: list[ClientEvent]) -> None:
        try:
            fields = wire.decode(MESSAGES, "ttrpc.Response", data)
        except InvalidArgument as err:
            return self._fail(stream_id, Internal(f"ttrpc: malformed response: {err}"), events)
        status = fields.get("status", {})
        # Behind a stream of messages, a response without payload is only the end.
        payload = fields.get("payload", None if self._streams.pop(stream_id) else b"")
        events.append(StreamEnded(stream_id, status.get("code", 0), status.get("message", ""), payload))
        return None

    def _fail(self, stream_id: int, error: Internal | ResourceExhausted, events: list[ClientEvent]) -> None:
        del self._streams[stream_id]
        events.append(StreamEnded(stream_id, error.code, error.message, None))
