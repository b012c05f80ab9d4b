"""The framing: whole, byte by byte, with trailing bytes, and over the limit."""

import struct

import pytest

from shim.errors import ResourceExhausted
from shim.ttrpc import frame
from shim.ttrpc.frame import Decoder, Frame

FRAMES = [
    Frame(1, frame.REQUEST, 0, b"hello"),
    Frame(3, frame.DATA, frame.REMOTE_CLOSED | frame.NO_DATA),
    Frame((1 << 32) - 1, frame.RESPONSE, 0xFF, bytes(300)),
    Frame(2, 0, 0, b"x"),
]
STREAM = b"".join(map(frame.encode, FRAMES))


def test_a_frame_has_exactly_these_bytes():
    assert frame.encode(Frame(0x01020304, 2, 5, b"ab")) == b"\0\0\0\x02\x01\x02\x03\x04\x02\x05ab"


def test_frames_come_out_of_one_piece():
    assert Decoder().feed(STREAM) == FRAMES


@pytest.mark.parametrize("size", [1, 2, 7, 10, 11, 100])
def test_frames_come_out_of_pieces_of_any_size(size):
    decoder = Decoder()
    found = []
    for start in range(0, len(STREAM), size):
        found += decoder.feed(STREAM[start : start + size])
    assert found == FRAMES


def test_a_frame_is_out_with_its_last_byte_and_the_rest_waits():
    decoder = Decoder()
    assert decoder.feed(STREAM[:14]) == []
    assert decoder.feed(STREAM[14:20]) == FRAMES[:1]
    assert decoder.feed(STREAM[20:]) == FRAMES[1:]


def test_a_frame_of_just_the_limit_passes():
    full = Frame(1, frame.DATA, 0, bytes(frame.MAX_DATA))
    assert Decoder().feed(frame.encode(full)) == [full]


def test_a_longer_one_is_not_encoded():
    with pytest.raises(
        ResourceExhausted, match="message length 4194305 exceed maximum message size of 4194304"
    ):
        frame.encode(Frame(1, frame.DATA, 0, bytes(frame.MAX_DATA + 1)))


@pytest.mark.parametrize("piece", [1 << 16, 1 << 30])
@pytest.mark.parametrize("length", [frame.MAX_DATA + 1, frame.MAX_DATA + 70000])
def test_the_data_of_an_oversized_frame_is_thrown_away_and_the_next_frame_is_found(length, piece):
    decoder = Decoder()
    stream = struct.pack(">IIBB", length, 7, 1, 0) + bytes(length) + STREAM
    found = []
    for start in range(0, len(stream), piece):
        found += decoder.feed(stream[start : start + piece])
        assert len(decoder._buffer) <= piece
    assert found == [Frame(7, 1, 0, oversized=length), *FRAMES]


def test_the_largest_length_there_is_keeps_nothing():
    decoder = Decoder()
    assert decoder.feed(b"\xff" * 10) == [Frame((1 << 32) - 1, 255, 255, oversized=(1 << 32) - 1)]
    for _ in range(100):
        assert decoder.feed(bytes(65536)) == []
    assert not decoder._buffer
