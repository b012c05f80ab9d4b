"""Both ends against each other, and each against a peer that breaks the rules."""

import struct

import pytest

from shim import wire
from shim.errors import InvalidArgument, ResourceExhausted
from shim.ttrpc import frame
from shim.ttrpc.connection import (
    ClientConnection,
    MessageReceived,
    MessagesEnded,
    Request,
    RequestReceived,
    ServerConnection,
    StreamBroken,
    StreamEnded,
)
from shim.ttrpc.frame import Frame
from shim.ttrpc.schema import MESSAGES

REQUEST = Request("a.B", "C", b"payload", 1_500_000_000, (("k", "v"), ("k", "w")))


def take(end):
    data = bytes(end.outgoing)
    end.outgoing.clear()
    return data


def statuses(server):
    """What the server has to say: (stream id, code, message, payload) of its responses."""
    found = []
    for answer in frame.Decoder().feed(take(server)):
        assert answer.type == frame.RESPONSE
        fields = wire.decode(MESSAGES, "ttrpc.Response", answer.data)
        status = fields.get("status", {})
        found.append((answer.stream_id, status.get("code", 0), status.get("message"), fields.get("payload")))
    return found


def request_frame(stream_id, request=REQUEST, flags=0):
    fields = {"service": request.service, "method": request.method, "payload": request.payload}
    return frame.encode(
        Frame(stream_id, frame.REQUEST, flags, wire.encode(MESSAGES, "ttrpc.Request", fields))
    )


def test_a_request_has_exactly_these_bytes():
    client = ClientConnection()
    client.open(Request("s", "m", b"p", 1, (("k", "v"),)))
    body = b"\n\x01s\x12\x01m\x1a\x01p\x20\x01\x2a\x06\n\x01k\x12\x01v"
    assert take(client) == struct.pack(">IIBB", len(body), 1, 1, 0) + body


def test_a_response_has_exactly_these_bytes():
    server = ServerConnection()
    server.receive(request_frame(1) + request_frame(3))
    server.respond(1, 0, "", b"p")
    server.respond(3, 5, "no")
    assert (
        take(server)
        == b"\0\0\0\x03\0\0\0\x01\x02\0\x12\x01p" + b"\0\0\0\x08\0\0\0\x03\x02\0\n\x06\x08\x05\x12\x02no"
    )


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_unary_calls_are_answered_in_any_order(size):
    client, server = ClientConnection(), ServerConnection()
    assert [client.open(REQUEST) for _ in range(3)] == [1, 3, 5]
    data = take(client)
    events = []
    for start in range(0, len(data), size):
        events += server.receive(data[start : start + size])
    assert events == [RequestReceived(stream_id, REQUEST, False) for stream_id in (1, 3, 5)]
    server.respond(5, 0, "", b"five")
    server.respond(1, 5, "no such container: not found")
    server.respond(3, 0)
    data = take(server)
    events = []
    for start in range(0, len(data), size):
        events += client.receive(data[start : start + size])
    assert events == [
        StreamEnded(5, 0, "", b"five"),
        StreamEnded(1, 5, "no such container: not found", b""),
        StreamEnded(3, 0, "", b""),
    ]


def test_messages_go_both_ways_until_both_have_ended():
    client, server = ClientConnection(), ServerConnection()
    stream_id = client.open(Request("a", "b", b""), sends_messages=True, wants_messages=True)
    client.send_message(stream_id, b"1")
    client.send_message(stream_id, b"")
    client.end_messages(stream_id)
    assert server.receive(take(client)) == [
        RequestReceived(1, Request("a", "b", b""), True),
        MessageReceived(1, b"1"),
        MessageReceived(1, b""),
        MessagesEnded(1),
    ]
    server.send_message(1, b"x")
    server.send_message(1, b"")
    server.end_messages(1)
    assert client.receive(take(server)) == [
        MessageReceived(1, b"x"),
        MessageReceived(1, b""),
        StreamEnded(1, 0, "", None),
    ]


def test_a_server_stream_may_end_with_an_error_or_an_empty_response():
    for code, message in ((0, ""), (13, "broken")):
        client, server = ClientConnection(), ServerConnection()
        client.open(REQUEST, wants_messages=True)
        server.receive(take(client))
        server.send_message(1, b"x")
        server.respond(1, code, message)
        assert client.receive(take(server)) == [MessageReceived(1, b"x"), StreamEnded(1, code, message, None)]


def test_the_flags_of_an_opened_stream_are_those_of_the_protocol():
    for sends, wants, flags in ((False, False, 0), (False, True, 1), (True, False, 2), (True, True, 2)):
        client = ClientConnection()
        client.open(REQUEST, sends_messages=sends, wants_messages=wants)
        assert take(client)[9] == flags


def test_data_with_the_close_flag_is_a_message_and_the_end():
    server = ServerConnection()
    server.receive(request_frame(1, flags=frame.REMOTE_OPEN))
    events = server.receive(frame.encode(Frame(1, frame.DATA, frame.REMOTE_CLOSED, b"last")))
    assert events == [MessageReceived(1, b"last"), MessagesEnded(1)]


# A client that breaks the rules.


@pytest.mark.parametrize("type_", [frame.REQUEST, frame.DATA, frame.RESPONSE])
def test_an_even_stream_id_is_told_so(type_):
    server = ServerConnection()
    assert server.receive(frame.encode(Frame(2, type_, 0, b""))) == []
    assert statuses(server) == [(2, 3, "StreamID must be odd for client initiated streams", None)]


@pytest.mark.parametrize("second", [5, 3, 1])
def test_a_stream_id_must_be_greater_than_the_last(second):
    server = ServerConnection()
    assert len(server.receive(request_frame(5))) == 1
    events = server.receive(request_frame(second))
    assert events == ([StreamBroken(5)] if second == 5 else [])
    assert statuses(server) == [(second, 3, "StreamID cannot be re-used and must increment", None)]
    assert len(server.receive(request_frame(7))) == 1


@pytest.mark.parametrize("flags", [0, frame.REMOTE_CLOSED | frame.NO_DATA])
def test_data_on_a_stream_never_opened_is_told_so(flags):
    server = ServerConnection()
    assert server.receive(frame.encode(Frame(9, frame.DATA, flags))) == []
    assert statuses(server) == [(9, 3, "StreamID is no longer active", None)]


def test_data_after_the_close_breaks_the_stream_and_it_is_answered_once():
    server = ServerConnection()
    server.receive(request_frame(1, flags=frame.REMOTE_OPEN))
    server.receive(frame.encode(Frame(1, frame.DATA, frame.REMOTE_CLOSED | frame.NO_DATA)))
    assert server.receive(frame.encode(Frame(1, frame.DATA, 0, b"more"))) == [StreamBroken(1)]
    server.respond(1, 0, "", b"late")
    server.send_message(1, b"late")
    server.end_messages(1)
    assert statuses(server) == [(1, 3, "StreamID is no longer active", None)]


def test_an_oversized_request_is_refused_and_the_connection_goes_on():
    server = ServerConnection()
    data = struct.pack(">IIBB", frame.MAX_DATA + 1, 1, frame.REQUEST, 0) + bytes(frame.MAX_DATA + 1)
    assert server.receive(data) == []
    assert statuses(server) == [(1, 8, "message length 4194305 exceed maximum message size of 4194304", None)]
    assert server.receive(request_frame(3)) == [RequestReceived(3, Request("a.B", "C", b"payload"), False)]


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05a", b"\x0a\x01\xff", b"\x2a\x02\x0a\x09"])
def test_a_malformed_request_is_an_invalid_argument(body):
    server = ServerConnection()
    assert server.receive(frame.encode(Frame(1, frame.REQUEST, 0, body))) == []
    [(stream_id, code, message, _)] = statuses(server)
    assert (stream_id, code) == (1, 3)
    assert message.startswith("unmarshal request error: ")


@pytest.mark.parametrize("type_", [0, frame.RESPONSE, 4, 255])
def test_frames_of_other_types_are_ignored(type_):
    server = ServerConnection()
    assert server.receive(frame.encode(Frame(1, type_, 0, b"whatever")) + request_frame(1))
    assert not server.outgoing


def test_a_negative_timeout_means_none():
    server = ServerConnection()
    body = wire.encode(MESSAGES, "ttrpc.Request", {"timeout_nano": -5})
    [event] = server.receive(frame.encode(Frame(1, frame.REQUEST, 0, body)))
    assert event.request.timeout_ns == 0


@pytest.mark.parametrize("size", [frame.MAX_DATA, frame.MAX_DATA + 1])
def test_a_reply_over_the_limit_becomes_resource_exhausted(size):
    server = ServerConnection()
    server.receive(request_frame(1))
    server.respond(1, 0, "", bytes(size))
    [(stream_id, code, message, _)] = statuses(server)
    assert (stream_id, code) == (1, 8)
    assert "exceed maximum message size" in message


def test_a_message_over_the_limit_is_an_error_to_the_sender():
    server, client = ServerConnection(), ClientConnection()
    server.receive(request_frame(1))
    with pytest.raises(ResourceExhausted):
        server.send_message(1, bytes(frame.MAX_DATA + 1))
    with pytest.raises(ResourceExhausted):
        client.open(Request("a", "b", bytes(frame.MAX_DATA)))
    assert client.open(REQUEST) == 1, "a request that was not sent uses no stream id"


def test_metadata_that_is_no_text_is_an_error_to_the_sender():
    with pytest.raises(InvalidArgument):
        ClientConnection().open(Request("a", "b", b"", 0, (("k", "\udc80"),)))


# A server that breaks the rules.


def test_answers_to_calls_that_are_unknown_given_up_or_done_are_ignored():
    client, server = ClientConnection(), ServerConnection()
    client.open(REQUEST)
    client.open(REQUEST)
    client.forget(1)
    server.receive(take(client))
    server.respond(1, 0)
    server.respond(3, 0)
    answers = take(server)
    assert client.receive(answers) == [StreamEnded(3, 0, "", b"")]
    assert client.receive(answers) == []
    assert client.receive(frame.encode(Frame(99, frame.DATA, 0, b"x"))) == []


def test_a_message_on_a_unary_call_fails_that_call():
    client = ClientConnection()
    client.open(REQUEST)
    [event] = client.receive(frame.encode(Frame(1, frame.DATA, 0, b"x")))
    assert (event.code, event.payload) == (13, None)


@pytest.mark.parametrize("wants_messages", [False, True])
def test_a_malformed_or_oversized_response_fails_that_call_only(wants_messages):
    client = ClientConnection()
    for _ in range(3):
        client.open(REQUEST, wants_messages=wants_messages)
    events = client.receive(frame.encode(Frame(1, frame.RESPONSE, 0, b"\xff")))
    oversized = struct.pack(">IIBB", frame.MAX_DATA + 1, 3, frame.RESPONSE, 0) + bytes(frame.MAX_DATA + 1)
    events += client.receive(oversized)
    events += client.receive(frame.encode(Frame(5, frame.RESPONSE, 0, b"\x12\x01p")))
    assert [(event.stream_id, event.code) for event in events] == [(1, 13), (3, 8), (5, 0)]
    assert events[2].payload == b"p"


def test_requests_from_a_server_are_ignored():
    client = ClientConnection()
    client.open(REQUEST)
    assert client.receive(request_frame(1)) == []
