from __future__ import annotations

from typing import Any

import pytest

from shim.vsock import header
from shim.vsock.connection import OPEN, OWES_CREDIT, OWES_REQUEST, OWES_RESPONSE, Connection
from shim.vsock.muxer import CHOKE_AT, FIRST_PORT, MAX_CONNECTIONS, Muxer, TooManyConnections


def connection(muxer: Muxer, guest_port: int = 1027) -> Any:
    made = Connection(muxer.new_port(guest_port), guest_port, source=True, sink=True)
    made.state = OPEN
    muxer.add(made)  # type: ignore[arg-type]
    return made


def test_ports_start_at_two_to_the_thirtieth_and_are_never_in_use() -> None:
    muxer = Muxer(3)
    first = connection(muxer)
    assert first.host_port == FIRST_PORT
    muxer._last_port = FIRST_PORT - 1
    assert connection(muxer).host_port == FIRST_PORT + 1


def test_ports_wrap_within_their_range() -> None:
    muxer = Muxer(3)
    muxer._last_port = 0x7FFFFFFF
    assert muxer.new_port(1) == FIRST_PORT


def test_there_is_a_limit_of_connections() -> None:
    muxer = Muxer(3)
    for _ in range(MAX_CONNECTIONS):
        connection(muxer)
    with pytest.raises(TooManyConnections):
        muxer.new_port(1)
    with pytest.raises(TooManyConnections):
        muxer.add(Connection(1, 1, source=True, sink=True))  # type: ignore[arg-type]


def test_a_connection_waits_once_however_much_it_owes() -> None:
    muxer = Muxer(3)
    one = connection(muxer)
    for _ in range(1000):
        muxer.owe(one, OWES_CREDIT)
    muxer.owe(one, OWES_RESPONSE)
    assert len(muxer.control) == 1
    ops = []
    while (packet := muxer.next_control()) is not None:
        ops.append(header.FIELDS.unpack(packet)[6])
    assert ops == [header.OP_RESPONSE, header.OP_CREDIT_UPDATE]


def test_every_header_tells_the_guest_its_credit() -> None:
    muxer = Muxer(7)
    one = connection(muxer)
    one.rx = (1 << 32) + 5
    muxer.owe(one, OWES_CREDIT)
    packet = muxer.next_control()
    assert packet is not None
    assert header.FIELDS.unpack(packet) == (
        *(2, 7, one.host_port, 1027, 0, 1, header.OP_CREDIT_UPDATE, 0, 262144, 5),
    )
    assert not one.owes_credit()


def test_a_reset_goes_back_to_where_the_packet_came_from() -> None:
    muxer = Muxer(3)
    muxer.reset(header.ports(4000, 5000))
    packet = muxer.next_control()
    assert packet is not None
    assert header.FIELDS.unpack(packet)[:7] == (2, 3, 5000, 4000, 0, 1, header.OP_RST)


def test_a_flood_of_bad_packets_chokes_until_replies_went_out() -> None:
    muxer = Muxer(3)
    for port in range(CHOKE_AT + 1):
        assert not muxer.is_choked()
        muxer.reset(port)
    assert muxer.is_choked() and not muxer.is_relieved()
    while not muxer.is_relieved():
        assert muxer.next_control()
    assert not muxer.is_choked()


def test_data_is_served_in_turn_and_each_waits_once() -> None:
    muxer = Muxer(3)
    one, two = connection(muxer), connection(muxer)
    for each in (one, two, one, two):
        muxer.wake(each)
    assert list(muxer.ready) == [one, two]


def test_forgetting_all_leaves_nothing_to_send() -> None:
    muxer = Muxer(3)
    one = connection(muxer)
    muxer.owe(one, OWES_REQUEST)
    muxer.wake(one)
    muxer.reset(5)
    assert muxer.forget_all() == [one]
    assert muxer.next_control() is None and not muxer.ready and not muxer.connections
    assert not one.in_control and not one.in_ready


def test_forgetting_does_not_touch_a_new_connection_on_the_same_ports() -> None:
    muxer = Muxer(3)
    old = connection(muxer)
    muxer.forget(old)
    new = Connection(old.host_port, old.guest_port, source=True, sink=True)
    muxer.add(new)  # type: ignore[arg-type]
    muxer.forget(old)
    assert muxer.connections[new.key] is new  # type: ignore[comparison-overlap]
