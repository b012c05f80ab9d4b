from __future__ import annotations

import contextlib
import random
import struct

import pytest

from shim.vsock.vhost_user import (
    FEATURES,
    PROTOCOL_FEATURES,
    Assembler,
    FrontEnd,
    Message,
    ProtocolFault,
    Refused,
    Request,
)


class Recorder:
    """A target that writes down what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.refuse = False

    def __getattr__(self, name: str) -> object:
        def call(*args: object) -> int:
            self.calls.append((name, *args))
            if self.refuse:
                raise Refused
            return 42

        return call


def encode(request: int, body: bytes = b"", flags: int = 1) -> bytes:
    return struct.pack("<III", request, flags, len(body)) + body


def front_end() -> tuple[FrontEnd, Recorder]:
    target = Recorder()
    return FrontEnd(target, (3).to_bytes(8, "little")), target  # type: ignore[arg-type]


def test_a_message_is_put_together_byte_by_byte_with_its_descriptors() -> None:
    assembler = Assembler()
    raw = encode(Request.SET_VRING_KICK, bytes(range(8)))
    for index, byte in enumerate(raw[:-1]):
        assert 1 <= assembler.wanted() <= len(raw) - index
        assert assembler.feed(bytes([byte]), [9] if index == 0 else []) is None
        assert not assembler.is_idle()
    message = assembler.feed(raw[-1:], [])
    assert message is not None
    assert (message.request, message.body, message.fds) == (Request.SET_VRING_KICK, bytes(range(8)), [9])
    assert assembler.is_idle() and assembler.wanted() == 12


def test_never_more_is_wanted_than_one_message_holds() -> None:
    assembler = Assembler()
    assert assembler.wanted() == 12
    assert assembler.feed(encode(1, b"", 1), []) is not None
    assert assembler.feed(encode(8, bytes(8))[:12], []) is None
    assert assembler.wanted() == 8


@pytest.mark.parametrize("head", [(1, 0, 0), (1, 2, 0), (1, 5, 0), (1, 1, 4097), (1, 1, 0xFFFFFFFF)])
def test_a_bad_head_is_a_fault(head: tuple[int, int, int]) -> None:
    assembler = Assembler()
    with pytest.raises(ProtocolFault):
        assembler.feed(struct.pack("<III", *head), [5])
    assert assembler.take_fds() == [5]


def test_features_are_offered_and_only_those_taken() -> None:
    front, target = front_end()
    answer = front.on_message(Message(Request.GET_FEATURES, 1, b"", []))
    assert answer == encode(Request.GET_FEATURES, struct.pack("<Q", FEATURES), 5)
    front.on_message(Message(Request.SET_FEATURES, 1, b"\xff" * 8, []))
    assert target.calls == [("set_features", FEATURES)]


def negotiated() -> tuple[FrontEnd, Recorder]:
    front, target = front_end()
    body = struct.pack("<Q", PROTOCOL_FEATURES)
    assert front.on_message(Message(Request.SET_PROTOCOL_FEATURES, 1, body, [])) is None
    return front, target


def test_a_reply_is_sent_only_when_asked_for_and_negotiated() -> None:
    body = struct.pack("<II", 1, 128)
    front, _ = front_end()
    assert front.on_message(Message(Request.SET_VRING_NUM, 9, body, [])) is None
    front, target = negotiated()
    assert front.on_message(Message(Request.SET_VRING_NUM, 1, body, [])) is None
    good = encode(Request.SET_VRING_NUM, bytes(8), 5)
    assert front.on_message(Message(Request.SET_VRING_NUM, 9, body, [])) == good
    target.refuse = True
    bad = encode(Request.SET_VRING_NUM, struct.pack("<Q", 1), 5)
    assert front.on_message(Message(Request.SET_VRING_NUM, 9, body, [])) == bad


def test_an_unknown_request_is_refused_not_fatal() -> None:
    front, _ = negotiated()
    assert front.on_message(Message(200, 9, b"", [])) == encode(200, struct.pack("<Q", 1), 5)
    assert front.on_message(Message(200, 1, b"", [])) is None


def test_the_config_space_is_the_cid() -> None:
    front, _ = front_end()
    body = struct.pack("<III", 0, 8, 0) + bytes(8)
    answer = front.on_message(Message(Request.GET_CONFIG, 1, body, []))
    assert answer == encode(Request.GET_CONFIG, struct.pack("<IIIQ", 0, 8, 0, 3), 5)
    beyond = struct.pack("<III", 100, 8, 0) + bytes(8)
    answer = front.on_message(Message(Request.GET_CONFIG, 1, beyond, []))
    assert answer is not None and answer.endswith(bytes(8))


def test_a_taken_descriptor_leaves_the_message() -> None:
    front, target = front_end()
    message = Message(Request.SET_VRING_KICK, 1, struct.pack("<Q", 1), [77])
    front.on_message(message)
    assert target.calls == [("set_kick", 1, 77)] and message.fds == []
    front.on_message(Message(Request.SET_VRING_CALL, 1, struct.pack("<Q", 0x100), []))
    assert target.calls[-1] == ("set_call", 0, -1)


def test_memory_regions_come_with_one_descriptor_each() -> None:
    front, target = front_end()
    body = struct.pack("<IIQQQQQQQQ", 2, 0, 1, 2, 3, 4, 5, 6, 7, 8)
    front.on_message(Message(Request.SET_MEM_TABLE, 1, body, [10, 11]))
    assert target.calls == [("set_memory", [(1, 2, 3, 4, 10), (5, 6, 7, 8, 11)])]


@pytest.mark.parametrize(
    "message",
    [
        Message(Request.SET_FEATURES, 1, b"", []),
        Message(Request.SET_VRING_NUM, 1, struct.pack("<II", 3, 128), []),
        Message(Request.SET_VRING_NUM, 1, struct.pack("<II", 0, 0), []),
        Message(Request.SET_VRING_NUM, 1, struct.pack("<II", 0, 100), []),
        Message(Request.SET_VRING_NUM, 1, struct.pack("<II", 0, 65536), []),
        Message(Request.SET_VRING_ADDR, 1, bytes(39), []),
        Message(Request.SET_VRING_ADDR, 1, struct.pack("<IIQQQQ", 9, 0, 0, 0, 0, 0), []),
        Message(Request.SET_VRING_KICK, 1, struct.pack("<Q", 0), []),
        Message(Request.SET_VRING_KICK, 1, struct.pack("<Q", 0), [1, 2]),
        Message(Request.SET_VRING_KICK, 1, struct.pack("<Q", 200), [1]),
        Message(Request.SET_MEM_TABLE, 1, struct.pack("<IIQQQQ", 2, 0, 1, 2, 3, 4), [1, 2]),
        Message(Request.SET_MEM_TABLE, 1, struct.pack("<IIQQQQ", 1, 0, 1, 2, 3, 4), []),
        Message(Request.SET_MEM_TABLE, 1, struct.pack("<II", 9, 0) + bytes(288), [1] * 9),
        Message(Request.GET_CONFIG, 1, struct.pack("<III", 0, 1 << 30, 0), []),
        Message(Request.GET_VRING_BASE, 1, b"\0\0\0\0", []),
    ],
)
def test_nonsense_is_a_fault(message: Message) -> None:
    front, target = front_end()
    with pytest.raises(ProtocolFault):
        front.on_message(message)
    assert target.calls == []


def test_random_messages_raise_nothing_but_faults() -> None:
    random_ = random.Random(1)
    front, _ = negotiated()
    for _ in range(20_000):
        body = random_.randbytes(random_.choice([0, 4, 8, 12, 20, 40, 72]))
        message = Message(random_.randrange(45), random_.choice([1, 9]), body, [1] * random_.randrange(3))
        with contextlib.suppress(ProtocolFault):
            front.on_message(message)
