from __future__ import annotations

import asyncio
import os
import pty
import select
import socket
import struct
import termios
from collections.abc import Awaitable
from fcntl import ioctl

import pytest

from shim import errors
from shim.guest import passio, rpcio
from shim.guest.stdio import Stdio

from .loop import eventually, go


class Host:
    """The host's ends of passed streams."""

    def __init__(self, *numbers: int) -> None:
        self.peers: dict[int, socket.socket] = {}
        self.streams: list[socket.socket | None] = [None, None, None]
        for number in numbers:
            ours, peer = socket.socketpair()
            ours.setblocking(False)
            peer.setblocking(False)
            self.streams[number], self.peers[number] = ours, peer

    async def read_to_end(self, number: int) -> bytes:
        data = b""
        while chunk := await asyncio.get_running_loop().sock_recv(self.peers[number], 1 << 20):
            data += chunk
        return data

    def close(self) -> None:
        for peer in self.peers.values():
            peer.close()


class Child:
    """Plays the process: owns copies of the three descriptors, as after a spawn."""

    def __init__(self, stdio: Stdio) -> None:
        self.fds = [os.dup(fd) for fd in stdio.open()]

    def kind(self, number: int) -> str:
        return os.readlink(f"/proc/self/fd/{self.fds[number]}").split(":")[0]

    async def write(self, number: int, data: bytes) -> None:
        await asyncio.to_thread(
            lambda: [os.write(self.fds[number], data[i : i + 4096]) for i in range(0, len(data), 4096)]
        )

    async def read(self, size: int) -> bytes:
        return await asyncio.to_thread(os.read, self.fds[0], size)

    async def read_to_end(self) -> bytes:
        data = b""
        while chunk := await self.read(1 << 16):
            data += chunk
        return data

    def exit(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


def make(host: Host, *, terminal: bool = False, rpc: bool = False) -> Stdio:
    return Stdio(host.streams, terminal=terminal, rpc=rpc)


def test_a_process_gets_pipes_for_passed_streams_and_null_for_the_others() -> None:
    async def test() -> None:
        host = Host(1)
        stdio = make(host)
        child = Child(stdio)
        assert [child.kind(number) for number in range(3)] == ["/dev/null", "pipe", "/dev/null"]
        assert all(os.get_blocking(fd) for fd in child.fds), "programs do not expect EAGAIN"
        stdio.attach()
        child.exit()
        await stdio.on_exit()
        await host.read_to_end(1)
        stdio.close()
        host.close()

    go(test)


def test_stdout_can_be_opened_again_by_its_name() -> None:
    async def test() -> None:
        host = Host(1)
        stdio = make(host)
        child = Child(stdio)
        again = os.open(f"/proc/self/fd/{child.fds[1]}", os.O_WRONLY)
        os.write(again, b"again")
        os.close(again)
        stdio.attach()
        child.exit()
        assert await host.read_to_end(1) == b"again"
        stdio.close()
        host.close()

    go(test)


def test_all_output_is_in_the_streams_when_the_exit_is_told() -> None:
    async def test() -> None:
        host = Host(1, 2)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        outs = [asyncio.create_task(host.read_to_end(number)) for number in (1, 2)]
        await child.write(1, b"o" * 3_000_000)
        await child.write(2, b"e" * 100)
        child.exit()
        await stdio.on_exit()
        assert [len(data) for data in await asyncio.gather(*outs)] == [3_000_000, 100]
        assert stdio.ended
        stdio.close()
        host.close()

    go(test)


def test_a_child_that_holds_stdout_does_not_delay_the_exit_and_is_still_heard() -> None:
    async def test() -> None:
        host = Host(1)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        grandchild = os.dup(child.fds[1])
        await child.write(1, b"early ")
        child.exit()
        await stdio.on_exit()
        assert not stdio.ended
        os.write(grandchild, b"late")
        os.close(grandchild)
        assert await host.read_to_end(1) == b"early late"
        stdio.close()
        host.close()

    go(test)


def test_a_child_that_holds_stdout_for_long_is_cut_off_but_not_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passio, "_HELD_S", 0.01)

    async def test() -> None:
        host = Host(1)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        grandchild = os.dup(child.fds[1])
        await child.write(1, b"early")
        child.exit()
        await stdio.on_exit()
        assert await host.read_to_end(1) == b"early"
        await asyncio.to_thread(os.write, grandchild, b"x" * 2_000_000)
        os.close(grandchild)
        await eventually(lambda: stdio.ended)
        stdio.close()
        host.close()
        await asyncio.sleep(0)

    go(test)


def test_a_slow_host_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passio, "_HELD_S", 0.0)
    monkeypatch.setattr("shim.guest.stdio.EXIT_GRACE_S", 0.01)

    async def test() -> None:
        host = Host(1)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        await child.write(1, b"x" * 900_000)
        child.exit()
        await stdio.on_exit()
        await asyncio.sleep(0.02)
        assert len(await host.read_to_end(1)) == 900_000
        stdio.close()
        host.close()

    go(test)


def test_a_stream_that_stands_still_delays_the_exit_by_the_grace_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shim.guest.stdio.EXIT_GRACE_S", 0.01)

    async def test() -> None:
        host = Host(1)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        writing = asyncio.create_task(child.write(1, b"x" * 900_000))  # fits the pipe, not the socket
        await writing
        child.exit()
        await stdio.on_exit()
        assert not stdio.ended
        assert len(await host.read_to_end(1)) == 900_000, "and nothing is lost by that"
        stdio.close()
        host.close()

    go(test)


def test_the_loss_of_a_stream_does_not_kill_or_block_the_process() -> None:
    async def test() -> None:
        host = Host(1)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        host.close()
        await asyncio.wait_for(child.write(1, b"x" * 5_000_000), 10)
        child.exit()
        await stdio.on_exit()
        stdio.close()

    go(test)


def test_stdin_reaches_the_process_whole_and_then_ends_however_slow_it_reads() -> None:
    async def test() -> None:
        host = Host(0)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        data = os.urandom(3_000_000)

        async def send() -> None:
            await asyncio.get_running_loop().sock_sendall(host.peers[0], data)
            host.peers[0].shutdown(socket.SHUT_WR)

        sending = asyncio.create_task(send())
        first = await child.read(10)
        assert first + await child.read_to_end() == data
        await sending
        child.exit()
        await stdio.on_exit()
        stdio.close()
        host.close()

    go(test)


def test_unread_stdin_does_not_hold_up_the_exit() -> None:
    async def test() -> None:
        host = Host(0)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        for _ in range(100):
            try:
                host.peers[0].send(b"x" * 65536)
            except BlockingIOError:
                await asyncio.sleep(0)
        child.exit()
        await stdio.on_exit()
        await eventually(lambda: select.select([host.peers[0]], [], [], 0)[0] != [])
        stdio.close()
        host.close()

    go(test)


def test_close_stdin_of_a_passed_stream_lets_what_has_arrived_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passio, "_LATE_STDIN_S", 0.0)

    async def test() -> None:
        host = Host(0)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        host.peers[0].send(b"before")
        stdio.end_stdin()
        stdio.end_stdin()
        assert await child.read_to_end() == b"before"
        child.exit()
        await stdio.on_exit()
        stdio.close()
        host.close()

    go(test)


def test_abandoned_streams_are_closed_on_both_sides() -> None:
    async def test() -> None:
        host = Host(0, 1, 2)
        stdio = make(host)
        stdio.open()
        stdio.abandon()
        stdio.abandon()
        for number in range(3):
            assert await host.read_to_end(number) == b""
        host.close()

    go(test)


def test_a_host_that_ignores_the_half_close_gets_a_full_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passio, "_HALF_CLOSE_S", 0.0)
    monkeypatch.setattr(passio, "_LINGER_S", 0.0)

    async def test() -> None:
        host = Host(1)
        stdio = make(host)
        child = Child(stdio)
        stdio.attach()
        await child.write(1, b"bytes")
        child.exit()
        await stdio.on_exit()
        await asyncio.sleep(0.05)
        assert await host.read_to_end(1) == b"bytes"
        with pytest.raises(BrokenPipeError):
            host.peers[1].send(b"x")
        stdio.close()
        host.close()

    go(test)


# By RPC.


def test_output_is_fetched_by_rpc_until_its_end() -> None:
    async def test() -> None:
        stdio = make(Host(), rpc=True)
        child = Child(stdio)
        stdio.attach()
        await child.write(1, b"hello")
        assert await stdio.read(1, 3) == b"hel"
        assert await stdio.read(1, 100) == b"lo"
        reading = asyncio.create_task(stdio.read(2, 100))
        await asyncio.sleep(0)
        await child.write(2, b"err")
        assert await reading == b"err"
        in_flight = asyncio.create_task(stdio.read(1, 100))
        await asyncio.sleep(0)
        await child.write(1, b"last")
        child.exit()
        await stdio.on_exit()
        assert await in_flight == b"last", "a read in flight gets what was written before the exit"
        assert await stdio.read(1, 100) == b""
        assert await stdio.read(2, 100) == b""
        stdio.close()

    go(test)


def test_a_read_of_no_bytes_is_not_taken_for_the_end() -> None:
    async def test() -> None:
        stdio = make(Host(), rpc=True)
        child = Child(stdio)
        stdio.attach()
        await child.write(1, b"ab")
        assert await stdio.read(1, 0) == b"a"
        child.exit()
        await stdio.on_exit()
        stdio.close()

    go(test)


def test_after_the_exit_a_silent_child_counts_as_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rpcio, "RPC_IDLE_S", 0.01)

    async def test() -> None:
        stdio = make(Host(), rpc=True)
        child = Child(stdio)
        stdio.attach()
        grandchild = os.dup(child.fds[1])
        reading = asyncio.create_task(stdio.read(1, 100))
        await asyncio.sleep(0)
        child.exit()
        await stdio.on_exit()
        assert await reading == b""
        os.write(grandchild, b"late")
        assert await stdio.read(1, 100) == b"late"
        os.close(grandchild)
        stdio.close()

    go(test)


def test_stdin_is_written_by_rpc_and_ends_after_what_is_being_written() -> None:
    async def test() -> None:
        stdio = make(Host(), rpc=True)
        child = Child(stdio)
        stdio.attach()
        writing = asyncio.create_task(stdio.write(b"x" * 3_000_000))
        await asyncio.sleep(0)
        assert await stdio.write(b"") == 0, "the end does not wait for the bytes before it"
        with pytest.raises(errors.FailedPrecondition):
            await stdio.write(b"more")
        assert len(await child.read_to_end()) == 3_000_000
        assert await writing == 3_000_000
        child.exit()
        await stdio.on_exit()
        stdio.close()

    go(test)


def test_a_write_to_a_process_that_has_ended_fails_and_does_not_hang() -> None:
    async def test() -> None:
        stdio = make(Host(), rpc=True)
        child = Child(stdio)
        stdio.attach()
        writing = asyncio.create_task(stdio.write(b"x" * 3_000_000))
        await asyncio.sleep(0)
        child.exit()
        with pytest.raises(errors.FailedPrecondition):
            await writing
        await stdio.on_exit()
        stdio.close()

    go(test)


def test_closing_ends_a_read_in_flight() -> None:
    async def test() -> None:
        stdio = make(Host(), rpc=True)
        child = Child(stdio)
        stdio.attach()
        reading = asyncio.create_task(stdio.read(1, 100))
        await asyncio.sleep(0)
        stdio.close()
        assert await reading == b""
        child.exit()

    go(test)


@pytest.mark.parametrize("rpc", [False, True])
def test_streams_of_the_other_kind_are_refused(rpc: bool) -> None:
    async def test() -> None:
        host = Host() if rpc else Host(0, 1)
        stdio = make(host, rpc=rpc)
        child = Child(stdio)
        stdio.attach()
        calls: list[Awaitable[object]] = (
            [] if rpc else [stdio.write(b"x"), stdio.read(1, 1), stdio.read(2, 1)]
        )
        for call in calls:
            with pytest.raises(errors.FailedPrecondition):
                await call
        with pytest.raises(errors.Unavailable, match="no tty"):
            stdio.resize(1, 1)
        child.exit()
        await stdio.on_exit()
        stdio.close()
        for number in host.peers:
            await host.read_to_end(number)
        host.close()
        await asyncio.sleep(0)

    go(test)


# With a terminal.


class Terminal:
    """A pty as crun hands it over; `slave` is what the process holds."""

    def __init__(self, stdio: Stdio) -> None:
        stdio.open()
        master, self.slave = pty.openpty()
        attributes = termios.tcgetattr(self.slave)
        attributes[3] &= ~termios.ECHO
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(self.slave, termios.TCSANOW, attributes)
        stdio.attach(master)


def test_a_terminal_joins_stdin_and_stdout() -> None:
    async def test() -> None:
        host = Host(0, 1, 2)
        stdio = make(host, terminal=True)
        terminal = Terminal(stdio)
        assert await host.read_to_end(2) == b"", "a terminal has no stderr of its own"
        host.peers[0].send(b"line\n")
        assert await asyncio.to_thread(os.read, terminal.slave, 100) == b"line\n"
        os.write(terminal.slave, b"answer")
        stdio.resize(33, 99)
        assert struct.unpack("HHHH", ioctl(terminal.slave, termios.TIOCGWINSZ, b"\0" * 8))[:2] == (33, 99)
        os.close(terminal.slave)
        await stdio.on_exit()
        assert await host.read_to_end(1) == b"answer"
        assert stdio.ended
        with pytest.raises(errors.Unavailable):
            stdio.resize(1, 1)
        stdio.close()
        host.close()

    go(test)


def test_the_end_of_stdin_leaves_a_terminal_open() -> None:
    async def test() -> None:
        host = Host(0, 1)
        stdio = make(host, terminal=True)
        terminal = Terminal(stdio)
        host.peers[0].shutdown(socket.SHUT_WR)
        stdio.end_stdin()
        await asyncio.sleep(0.01)
        os.write(terminal.slave, b"still here")
        os.close(terminal.slave)
        await stdio.on_exit()
        assert await host.read_to_end(1) == b"still here"
        stdio.close()
        host.close()

    go(test)


def test_a_terminal_nobody_reads_does_not_stop_its_program() -> None:
    async def test() -> None:
        stdio = make(Host(), terminal=True)
        terminal = Terminal(stdio)
        await asyncio.to_thread(lambda: [os.write(terminal.slave, b"x" * 1000) for _ in range(300)])
        os.close(terminal.slave)
        await stdio.on_exit()
        stdio.close()

    go(test)


def test_a_terminal_by_rpc() -> None:
    async def test() -> None:
        stdio = make(Host(), terminal=True, rpc=True)
        terminal = Terminal(stdio)
        assert await stdio.write(b"in\n") == 3
        assert await asyncio.to_thread(os.read, terminal.slave, 100) == b"in\n"
        os.write(terminal.slave, b"out")
        assert await stdio.read(1, 100) == b"out"
        os.close(terminal.slave)
        await stdio.on_exit()
        assert await stdio.read(1, 100) == b""
        stdio.close()

    go(test)


def test_a_window_larger_than_the_kernel_knows_is_cut() -> None:
    async def test() -> None:
        stdio = make(Host(), terminal=True)
        terminal = Terminal(stdio)
        stdio.resize(2**32 - 1, 2**31)
        size = struct.unpack("HHHH", ioctl(terminal.slave, termios.TIOCGWINSZ, b"\0" * 8))
        assert size[:2] == (65535, 65535)
        os.close(terminal.slave)
        await stdio.on_exit()
        stdio.close()

    go(test)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a pipe away")
def test_the_pipes_belong_to_who_is_to_open_them_again() -> None:
    async def test() -> None:
        host = Host(1)
        stdio = Stdio(host.streams, terminal=False, rpc=False, owner=(1000, 2000))
        found = os.fstat(stdio.open()[1])
        assert (found.st_uid, found.st_gid) == (1000, 2000)
        stdio.close()
        host.close()

    go(test)
