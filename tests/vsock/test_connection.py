from __future__ import annotations

import pytest

from shim.vsock import header
from shim.vsock.connection import (
    BUF_ALLOC,
    CLOSED,
    DRAINING,
    OPEN,
    OWES_CREDIT,
    OWES_REQUEST,
    OWES_RESPONSE,
    Connection,
    ConnectionFault,
)


def opened(*, source: bool = True, sink: bool = True) -> Connection:
    connection = Connection(1 << 30, 1027, source=source, sink=sink)
    connection.on_response()
    return connection


def test_credit_is_what_the_peer_can_hold_minus_what_is_under_way() -> None:
    connection = opened()
    assert connection.credit() <= 0
    assert connection.on_credit(1000, 0)
    connection.tx += 600
    assert connection.credit() == 400
    assert connection.on_credit(1000, 500)
    assert connection.credit() == 900


def test_credit_goes_on_beyond_32_bits() -> None:
    connection = opened()
    connection.tx = (1 << 32) + 10
    connection.peer_fwd = 0xFFFFFFF0
    assert connection.on_credit(1000, 4)
    assert connection.credit() == 994


def test_a_peer_that_shrinks_its_buffer_just_has_no_credit() -> None:
    connection = opened()
    connection.on_credit(1000, 0)
    connection.tx = 900
    assert connection.on_credit(100, 0)
    assert connection.credit() < 0


def test_a_claim_for_bytes_never_sent_is_a_lie() -> None:
    connection = opened()
    connection.tx = 10
    assert connection.on_credit(1000, 10)
    assert not connection.on_credit(1000, 11)
    assert not connection.on_credit(1000, 0x7FFFFFFF)


def test_a_count_that_went_back_is_old_news() -> None:
    connection = opened()
    connection.tx = 100
    connection.on_credit(1000, 90)
    assert connection.on_credit(1000, 50)
    assert connection.peer_fwd == 90


@pytest.mark.parametrize("alloc", [0, 1, 2, 4096, 65536, BUF_ALLOC, 1 << 20, 0xFFFFFFFF])
def test_the_guest_hears_of_its_credit_before_it_can_run_out(alloc: int) -> None:
    connection = opened()
    connection.on_credit(alloc, 0)
    assert 1 <= connection.threshold <= max(1, BUF_ALLOC // 2)
    connection.rx += max(1, min(alloc, BUF_ALLOC))
    assert connection.owes_credit()


def test_what_waits_for_the_host_is_bounded() -> None:
    connection = opened()
    assert connection.hold(bytes(BUF_ALLOC))
    assert not connection.hold(b"x")
    connection.on_flushed(10)
    assert connection.hold(bytes(10))
    assert connection.rx == 10


@pytest.mark.parametrize(
    ("source", "sink", "flags", "over"),
    [
        (True, True, 0, False),
        (True, True, header.SHUT_SEND, False),
        (True, True, header.SHUT_RCV, False),
        (True, True, header.SHUT_BOTH, True),
        (False, True, header.SHUT_SEND, True),
        (False, True, header.SHUT_RCV, False),
        (True, False, header.SHUT_RCV, True),
        (True, False, header.SHUT_SEND, False),
    ],
)
def test_a_connection_is_over_when_each_direction_it_had_is_done(
    source: bool, sink: bool, flags: int, over: bool
) -> None:
    connection = opened(source=source, sink=sink)
    connection.on_shutdown(flags)
    assert connection.is_over() is over


def test_shutdown_flags_add_up_and_odd_bits_are_ignored() -> None:
    connection = opened()
    connection.on_shutdown(header.SHUT_RCV | 0xF0)
    connection.on_shutdown(header.SHUT_SEND)
    assert connection.guest_shut == header.SHUT_BOTH


def test_nothing_is_over_while_bytes_wait() -> None:
    connection = opened()
    connection.hold(b"abc")
    connection.on_shutdown(header.SHUT_BOTH)
    assert not connection.is_over() and not connection.host_may_finish_writing()
    connection.on_flushed(3)
    assert connection.is_over() and connection.host_may_finish_writing()


def test_a_draining_connection_is_over_when_it_is_empty() -> None:
    connection = opened()
    connection.hold(b"abc")
    connection.state = DRAINING
    assert not connection.is_over()
    connection.on_flushed(3)
    assert connection.is_over()


def test_data_is_refused_where_it_cannot_go() -> None:
    assert opened().takes_data
    assert not opened(sink=False).takes_data
    assert not Connection(1, 2, source=True, sink=True).takes_data
    connection = opened()
    connection.on_shutdown(header.SHUT_SEND)
    assert not connection.takes_data


def test_answers_out_of_order_are_faults() -> None:
    with pytest.raises(ConnectionFault):
        opened().on_response()
    waiting = Connection(1, 2, source=True, sink=True)
    with pytest.raises(ConnectionFault):
        waiting.on_shutdown(3)
    waiting.owed = OWES_REQUEST  # not even asked yet
    with pytest.raises(ConnectionFault):
        waiting.on_response()


def test_packets_owed_come_most_urgent_first_and_once() -> None:
    connection = opened()
    connection.owed = OWES_CREDIT | OWES_RESPONSE
    connection.on_host_eof(both=False)
    ops = [connection.next_packet() for _ in range(4)]
    assert ops == [
        (header.OP_RESPONSE, 0),
        (header.OP_SHUTDOWN, header.SHUT_SEND),
        (header.OP_CREDIT_UPDATE, 0),
        None,
    ]
    connection.on_host_eof(both=False)
    assert connection.next_packet() is None
    connection.on_host_eof(both=True)
    assert connection.next_packet() == (header.OP_SHUTDOWN, header.SHUT_BOTH)


@pytest.mark.parametrize("state", [DRAINING, CLOSED])
def test_nothing_is_owed_to_a_guest_that_knows_the_connection_no_more(state: int) -> None:
    connection = opened()
    connection.owed = OWES_CREDIT
    connection.state = state
    assert connection.next_packet() is None


def test_the_host_is_read_only_while_that_makes_sense() -> None:
    assert opened().wants_host_data()
    assert not opened(source=False).wants_host_data()
    connection = opened()
    connection.on_host_eof(both=False)
    assert not connection.wants_host_data()
    connection = opened()
    connection.on_shutdown(header.SHUT_RCV)
    assert not connection.wants_host_data()
    connection = opened()
    connection.state = DRAINING
    assert not connection.wants_host_data()


def test_an_open_connection_is_open() -> None:
    assert opened().state == OPEN
