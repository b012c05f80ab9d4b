from __future__ import annotations

import pytest

from shim.vsock import handshake
from shim.vsock.handshake import KEEP, PASSFD, PLAIN, STREAM, BadRequest, Verbs, parse_passfd, parse_request

REQUESTS = [
    (b"CONNECT 1024\n", 1024),
    (b"connect 1024\n", 1024),
    (b"CoNnEcT  4294967295\n", 4294967295),
    (b"CONNECT 0\n", 0),
    (b"passfd\n", PASSFD),
    (b"PASSFD\n", PASSFD),
]


@pytest.mark.parametrize(("line", "port"), REQUESTS)
def test_a_request_is_understood_whole_and_with_bytes_behind_it(line: bytes, port: int) -> None:
    assert parse_request(line) == (port, len(line))
    assert parse_request(line + b"payload\nmore\n") == (port, len(line))


@pytest.mark.parametrize(("line", "port"), REQUESTS)
def test_a_request_may_come_byte_by_byte(line: bytes, port: int) -> None:
    for end in range(len(line)):
        assert parse_request(line[:end]) is None
    assert parse_request(line) == (port, len(line))


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b" \n",
        b"CONNECT\n",
        b"CONNECT x\n",
        b"CONNECT -1\n",
        b"CONNECT +1\n",
        b"CONNECT 1_0\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 99999999999999999\n",
        b"CONNECT 1 2\n",
        b"CONNECT \xd9\xa1\n",
        b"passfd 5\n",
        b"GET / HTTP/1.1\r\n",
        b"\x00\xff\n",
        b"a" * 32,
        b"CONNECT " + b" " * 23 + b"1\n",
    ],
)
def test_anything_else_is_refused(line: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_request(line)


@pytest.mark.parametrize(
    ("message", "result"),
    [
        (b"1027", (1027, PLAIN)),
        (b"1027\n", (1027, PLAIN)),
        (b"1027 keep", (1027, KEEP)),
        (b"1027 stream", (1027, STREAM)),
        (b"1027 stream\n", (1027, STREAM)),
        (b"1027 Keep", (1027, PLAIN)),
        (b"1027 other words", (1027, PLAIN)),
    ],
)
def test_the_text_beside_a_descriptor(message: bytes, result: tuple[int, bytes]) -> None:
    assert parse_passfd(message) == result


@pytest.mark.parametrize("message", [b"", b" ", b"keep", b"-1", b"4294967296", b"1" * 33, b"1" + b" " * 40])
def test_a_bad_text_beside_a_descriptor_is_refused(message: bytes) -> None:
    with pytest.raises(BadRequest):
        parse_passfd(message)


def test_verbs_come_whole_in_pieces_and_together() -> None:
    assert Verbs().feed(b"eof\nstat\nst") == [b"eof", b"stat"]
    verbs = Verbs()
    assert [verbs.feed(bytes([byte])) for byte in b"eof\n"] == [[], [], [], [b"eof"]]


@pytest.mark.parametrize("data", [b"x" * 32, b"x" * 32 + b"\n", b"eof\n" + b"y" * 1000])
def test_verbs_are_bounded(data: bytes) -> None:
    with pytest.raises(BadRequest):
        Verbs().feed(data)


def test_answers_are_as_documented() -> None:
    assert handshake.ok(1073741824) == b"OK 1073741824\n"
    assert handshake.stat(1, 2, 3) == b"STAT rx=1 tx=2 stalls=3\n"
    assert handshake.drained(1 << 40, 0, 7) == b"DRAINED rx=1099511627776 tx=0 stalls=7\n"
