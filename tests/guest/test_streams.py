from __future__ import annotations

import asyncio
import errno
import socket

import pytest

from shim import errors
from shim.guest import streams as module
from shim.guest.streams import Streams
from shim.log import Log

from .loop import go


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def is_closed(peer: socket.socket) -> bool:
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False


def make() -> Streams:
    return Streams(Log(2, "error"))


def test_streams_are_handed_out_by_port_in_the_order_asked_for() -> None:
    async def test() -> None:
        streams = make()
        (one, one_peer), (two, two_peer) = pair(), pair()
        streams.arrive(11, one)
        streams.arrive(12, two)
        assert await streams.claim([12, 0, 11], 1) == [two, None, one]
        for sock in (one, two, one_peer, two_peer):
            sock.close()

    go(test)


def test_a_claim_waits_for_streams_that_arrive_later() -> None:
    async def test() -> None:
        streams = make()
        (one, one_peer), (two, two_peer) = pair(), pair()
        claim = asyncio.create_task(streams.claim([11, 12, 0], 5))
        await asyncio.sleep(0)
        streams.arrive(12, two)
        streams.arrive(11, one)
        assert await claim == [one, two, None]
        for sock in (one, two, one_peer, two_peer):
            sock.close()

    go(test)


def test_no_ports_are_no_wait() -> None:
    async def test() -> None:
        assert await make().claim([0, 0, 0], 0) == [None, None, None]

    go(test)


def test_a_claim_that_fails_names_the_port_and_closes_what_it_had() -> None:
    async def test() -> None:
        streams = make()
        one, peer = pair()
        streams.arrive(11, one)
        with pytest.raises(errors.DeadlineExceeded, match="port 12"):
            await streams.claim([11, 12], 0.01)
        assert is_closed(peer)
        peer.close()
        late, late_peer = pair()
        streams.arrive(12, late)
        assert await streams.claim([12], 1) == [late], "a late stream can be claimed again"
        late.close()
        late_peer.close()

    go(test)


def test_a_cancelled_claim_closes_what_it_had() -> None:
    async def test() -> None:
        streams = make()
        one, peer = pair()
        streams.arrive(11, one)
        claim = asyncio.create_task(streams.claim([11, 12], 60))
        await asyncio.sleep(0)
        claim.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claim
        assert is_closed(peer)
        peer.close()

    go(test)


def test_one_port_is_not_claimed_twice() -> None:
    async def test() -> None:
        streams = make()
        with pytest.raises(errors.InvalidArgument):
            await streams.claim([11, 11], 1)
        claim = asyncio.create_task(streams.claim([11], 5))
        await asyncio.sleep(0)
        with pytest.raises(errors.AlreadyExists):
            await streams.claim([11], 1)
        one, peer = pair()
        streams.arrive(11, one)
        assert await claim == [one]
        one.close()
        peer.close()

    go(test)


def test_a_second_stream_of_a_port_replaces_the_first() -> None:
    async def test() -> None:
        streams = make()
        (old, old_peer), (new, new_peer) = pair(), pair()
        streams.arrive(11, old)
        streams.arrive(11, new)
        assert is_closed(old_peer)
        assert await streams.claim([11], 1) == [new]
        for sock in (new, old_peer, new_peer):
            sock.close()

    go(test)


def test_a_stream_that_nobody_claims_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNCLAIMED_S", 0.0)

    async def test() -> None:
        streams = make()
        one, peer = pair()
        streams.arrive(11, one)
        await asyncio.sleep(0.01)
        assert is_closed(peer)
        peer.close()

    go(test)


def test_a_flood_of_unclaimed_streams_pushes_out_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_UNCLAIMED", 3)

    async def test() -> None:
        streams = make()
        pairs = [pair() for _ in range(5)]
        for port, (ours, _) in enumerate(pairs, 1):
            streams.arrive(port, ours)
        assert [is_closed(peer) for _, peer in pairs] == [True, True, False, False, False]
        streams.close()
        assert all(is_closed(peer) for _, peer in pairs)
        for _, peer in pairs:
            peer.close()

    go(test)


def test_accepted_connections_are_known_by_the_port_of_their_peer() -> None:
    async def test() -> None:
        streams = make()
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        streams.listen(listener)
        clients = [socket.create_connection(address) for _ in range(3)]
        claimed = await streams.claim([client.getsockname()[1] for client in reversed(clients)], 5)
        for stream, client in zip(claimed, reversed(clients), strict=True):
            assert stream is not None
            assert not stream.getblocking()
            client.sendall(b"hello")
            assert await asyncio.get_running_loop().sock_recv(stream, 10) == b"hello"
            stream.close()
            client.close()
        streams.close()

    go(test)


def test_running_out_of_descriptors_is_a_pause_and_not_a_busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ACCEPT_PAUSE_S", 0.02)

    class Listener:
        """A listening socket whose first accept fails."""

        def __init__(self, real: socket.socket) -> None:
            self.real, self.accepts = real, 0
            self.fileno, self.setblocking, self.close = real.fileno, real.setblocking, real.close

        def accept(self) -> tuple[socket.socket, object]:
            self.accepts += 1
            if self.accepts == 1:
                raise OSError(errno.EMFILE, "Too many open files")
            return self.real.accept()

    async def test() -> None:
        streams = make()
        listener = Listener(socket.create_server(("127.0.0.1", 0)))
        streams.listen(listener)  # type: ignore[arg-type]
        client = socket.create_connection(listener.real.getsockname())
        claimed = await streams.claim([client.getsockname()[1]], 5)
        assert claimed[0] is not None
        assert listener.accepts == 3, "a failure, a success, and nothing more"
        claimed[0].close()
        client.close()
        streams.close()

    go(test)
