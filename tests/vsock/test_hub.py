"""Timeouts of requests and handshakes, with the clock as an argument."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from time import monotonic

import pytest

from shim.log import Log
from shim.vsock import header
from shim.vsock.connection import OPEN
from shim.vsock.hub import REQUEST_TIMEOUT_S, Hub
from shim.vsock.listener import HANDSHAKE_TIMEOUT_S, Listener
from shim.vsock.muxer import MAX_CONNECTIONS, Muxer
from shim.vsock.poller import Poller
from shim.vsock.stream import Stream


class Fixture:
    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "s")
        bound = socket.socket(socket.AF_UNIX)
        bound.bind(self.path)
        bound.listen()
        log = Log(os.open(folder / "log", os.O_WRONLY | os.O_CREAT), "debug")
        self.poller = Poller()
        self.hub = Hub(self.poller, Muxer(3), self.path, log)
        self.listener = Listener(self.poller, self.hub, bound.detach(), log)

    def client(self, data: bytes) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        client.sendall(data)
        for _ in range(3):
            self.poller.poll(0.05)
        return client

    def ops(self) -> list[int]:
        found = []
        while (packet := self.hub.muxer.next_control()) is not None:
            found.append(header.FIELDS.unpack(packet)[6])
        return found


@pytest.fixture
def hub(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def test_a_request_the_guest_never_answers_is_given_up(hub: Fixture) -> None:
    client = hub.client(b"CONNECT 5\n")
    assert hub.ops() == [header.OP_REQUEST]
    hub.hub.sweep(monotonic() + REQUEST_TIMEOUT_S - 1)
    assert hub.hub.requested
    hub.hub.sweep(monotonic() + REQUEST_TIMEOUT_S)
    assert client.recv(1) == b""
    assert hub.ops() == [header.OP_RST]
    assert not hub.hub.requested and not hub.hub.muxer.connections


def test_a_request_the_guest_has_not_even_seen_is_given_up_silently(hub: Fixture) -> None:
    client = hub.client(b"CONNECT 5\n")
    hub.hub.sweep(monotonic() + REQUEST_TIMEOUT_S)
    assert client.recv(1) == b""
    assert hub.ops() == []


@pytest.mark.parametrize("data", [b"", b"CONN", b"passfd\n", b"passfd\n10"])
def test_a_half_finished_handshake_is_ended(hub: Fixture, data: bytes) -> None:
    client = hub.client(data)
    assert hub.listener.has_deadlines()
    hub.listener.sweep(monotonic() + HANDSHAKE_TIMEOUT_S - 1)
    assert hub.listener.has_deadlines()
    hub.listener.sweep(monotonic() + HANDSHAKE_TIMEOUT_S)
    with contextlib.suppress(ConnectionResetError):  # what it gets if some of its bytes were never read
        assert client.recv(1) == b""
    assert not hub.listener.has_deadlines()


def test_a_client_that_hangs_up_takes_its_request_with_it(hub: Fixture) -> None:
    client = hub.client(b"CONNECT 5\n")
    assert hub.ops() == [header.OP_REQUEST]
    client.close()
    hub.poller.poll(1)
    assert hub.ops() == [header.OP_RST]


def test_connections_that_the_guest_has_left_full_count_until_they_are_read(hub: Fixture) -> None:
    muxer = hub.hub.muxer
    streams = []
    for port in range(MAX_CONNECTIONS):
        stream = Stream(port, 5, -1, source=False, sink=True, is_socket=False)
        stream.state = OPEN
        stream.hold(b"not read yet")
        muxer.add(stream)
        hub.hub.detach(stream)
        streams.append(stream)
    assert not muxer.connections
    assert hub.client(b"CONNECT 5\n").recv(1) == b""
    hub.hub.host_failed(streams[0], BrokenPipeError())
    hub.client(b"CONNECT 5\n")
    assert len(muxer.connections) == 1


def test_a_lost_guest_closes_those_who_wait(hub: Fixture) -> None:
    client = hub.client(b"CONNECT 5\n")
    hub.hub.detach_all()
    assert client.recv(1) == b""
    assert hub.ops() == []
