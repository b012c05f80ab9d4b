"""FIFOs as containerd makes them, handed to a device that keeps them: who sees what, and when."""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shim.agent.api import ProcessIds, StdioPorts
from shim.errors import InvalidArgument, NotFound, Unavailable
from shim.log import Log
from shim.record import Record
from shim.stdio.fifo import open_input, open_output
from shim.stdio.logger import Loggers
from shim.stdio.streams import Streams
from shim.stdio.uri import Endpoints
from shim.stdio.wiring import Wiring
from tests.fakes.agent import FakeAgent
from tests.fakes.vsock_device import FakeVsockDevice
from tests.sandbox.stack import until

LOG = Log(2, "error")
Body = Callable[[FakeVsockDevice, Endpoints], Awaitable[None]]


def on_fifos(body: Body) -> Callable[[Path], None]:
    """Run `body` with a device and three FIFOs; no fd may be left."""

    def run(tmp_path: Path) -> None:
        paths = [str(tmp_path / name) for name in ("stdin", "stdout", "stderr")]
        for path in paths:
            os.mkfifo(path)

        async def main() -> None:
            before = len(os.listdir("/proc/self/fd"))
            device = FakeVsockDevice(automatic=False)
            async with asyncio.timeout(10):
                await body(device, Endpoints(*paths))
            device.close()
            assert len(os.listdir("/proc/self/fd")) == before

        asyncio.run(main())

    run.__name__, run.__doc__ = body.__name__, body.__doc__
    return run


async def attached(device: FakeVsockDevice, endpoints: Endpoints, *, watch_stdin: bool = True) -> Streams:
    wiring = Wiring(device, FakeAgent(), 1027, Loggers(Record("/", "ns", "c1", ""), LOG), LOG)
    ids = ProcessIds("c1")
    return await wiring.attach(ids, endpoints, 1.0, terminal=False, watch_stdin=watch_stdin)


def ports_of(streams: Streams) -> StdioPorts:
    assert streams.ports is not None
    return streams.ports


def hung_up(fd: int) -> bool:
    """Whether the device would be woken by its stdin FIFO for ever."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))


@on_fifos
async def test_each_stream_is_an_open_of_its_own_and_non_blocking(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    same = Endpoints(endpoints.stdin, endpoints.stdout, endpoints.stdout)
    streams = await attached(device, same)
    ports = (ports_of(streams).stdin, ports_of(streams).stdout, ports_of(streams).stderr)
    assert len({0, *ports}) == 4
    modes = [fcntl.fcntl(device.streams[port].fd, fcntl.F_GETFL) for port in ports]
    assert all(mode & os.O_NONBLOCK for mode in modes)
    assert [mode & os.O_ACCMODE for mode in modes] == [os.O_RDWR, os.O_WRONLY, os.O_WRONLY]
    fcntl.fcntl(device.streams[ports[1]].fd, fcntl.F_SETFL, 0)  # what the device does to one reaches no other
    assert fcntl.fcntl(device.streams[ports[2]].fd, fcntl.F_GETFL) & os.O_NONBLOCK
    streams.close()


@on_fifos
async def test_what_is_written_before_a_client_opens_waits_for_it(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    assert endpoints.stdout is not None
    streams = await attached(device, endpoints)
    stdout = device.streams[ports_of(streams).stdout]
    stdout.write(b"early")
    stdout.finish()
    client = os.open(endpoints.stdout, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(client, 100) == b"early"
    assert os.read(client, 100) == b"", "the end is seen while our own read end is still open"
    streams.close()
    os.close(client)


@on_fifos
async def test_a_client_that_detaches_does_not_break_the_output(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    assert endpoints.stdout is not None
    streams = await attached(device, endpoints)
    client = os.open(endpoints.stdout, os.O_RDONLY | os.O_NONBLOCK)
    os.close(client)
    device.streams[ports_of(streams).stdout].write(b"still here")
    client = os.open(endpoints.stdout, os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(client, 100) == b"still here"
    os.close(client)
    streams.close()


@on_fifos
async def test_input_whose_client_left_before_the_start_has_ended(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    assert endpoints.stdin is not None
    streams = await attached(device, endpoints)
    stdin = device.streams[ports_of(streams).stdin].fd
    assert not streams.input_has_ended(), "no client yet is no end"
    client = os.open(endpoints.stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"all of it")
    assert not streams.input_has_ended(), "it is still there"
    os.close(client)
    assert streams.input_has_ended()
    assert streams.input_has_ended(), "asked twice"
    assert await streams.close_stdin()
    assert device.streams[ports_of(streams).stdin].eofs == 1
    assert not hung_up(stdin)
    assert os.read(stdin, 100) == b"all of it"
    streams.close()


@on_fifos
async def test_a_reader_that_is_gone_breaks_the_client_even_before_start(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    assert endpoints.stdin is not None
    streams = await attached(device, endpoints)
    client = os.open(endpoints.stdin, os.O_WRONLY | os.O_NONBLOCK)
    device.streams[ports_of(streams).stdin].finish()
    with pytest.raises(BrokenPipeError):
        os.write(client, b"x")
    os.close(client)
    streams.close()


@on_fifos
async def test_after_the_start_a_client_that_goes_away_has_detached(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    assert endpoints.stdin is not None
    streams = await attached(device, endpoints)
    stdin = device.streams[ports_of(streams).stdin].fd
    client = os.open(endpoints.stdin, os.O_WRONLY | os.O_NONBLOCK)
    streams.forget_client()
    streams.forget_client()
    os.close(client)
    assert not hung_up(stdin)
    assert not streams.input_has_ended()
    client = os.open(endpoints.stdin, os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"back again")
    assert os.read(stdin, 100) == b"back again"
    os.close(client)
    assert device.streams[ports_of(streams).stdin].eofs == 0
    streams.close()


@on_fifos
async def test_an_execs_client_may_leave_at_any_time(device: FakeVsockDevice, endpoints: Endpoints) -> None:
    assert endpoints.stdin is not None
    streams = await attached(device, endpoints, watch_stdin=False)
    os.close(os.open(endpoints.stdin, os.O_WRONLY | os.O_NONBLOCK))
    assert not streams.input_has_ended()
    assert not hung_up(device.streams[ports_of(streams).stdin].fd)
    streams.close()


@on_fifos
async def test_a_device_that_cannot_end_a_stream_says_so(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    streams = await attached(device, endpoints)
    device.streams[ports_of(streams).stdin].knows_eof = False
    assert not await streams.close_stdin()
    streams.close()


@on_fifos
async def test_no_path_is_no_stream_and_port_zero(device: FakeVsockDevice, endpoints: Endpoints) -> None:
    streams = await attached(device, Endpoints(None, endpoints.stdout, None))
    assert (ports_of(streams).stdin, ports_of(streams).stderr) == (0, 0)
    assert not streams.input_has_ended()
    assert await streams.close_stdin()
    streams.close()
    streams.close()
    assert await (await attached(device, Endpoints(None, None, None))).drained(1, 1)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_device_that_refuses_leaves_nothing_open(tmp_path: Path, taken: int) -> None:
    @on_fifos
    async def body(device: FakeVsockDevice, endpoints: Endpoints) -> None:
        device.fail, device.fail_after = Unavailable("gone"), taken
        with pytest.raises(Unavailable):
            await attached(device, endpoints, watch_stdin=True)
        assert all(stream.closed and stream.abandoned for stream in device.streams.values())

    body(tmp_path)


@on_fifos
async def test_a_caller_that_gives_up_leaves_nothing_open(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    device.hold_after = 2
    attaching = asyncio.create_task(attached(device, endpoints))
    await until(lambda: len(device.streams) == 2)
    attaching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await attaching
    assert all(stream.closed and stream.abandoned for stream in device.streams.values())


@on_fifos
async def test_a_path_that_is_missing_is_named_and_nothing_stays_open(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    for broken in (Endpoints("/no/in", endpoints.stdout, None), Endpoints(None, endpoints.stdout, "/no/in")):
        with pytest.raises(NotFound, match="/no/in"):
            await attached(device, broken)
    assert not device.streams


# -- drained -------------------------------------------------------------------------------------------------


@on_fifos
async def test_drained_is_when_both_outputs_have_arrived(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    streams = await attached(device, endpoints)
    waiting = asyncio.create_task(streams.drained(5, 5))
    device.streams[ports_of(streams).stdout].finish()
    await asyncio.sleep(0)
    assert not waiting.done()
    device.streams[ports_of(streams).stderr].finish()
    assert await waiting
    streams.close()


@on_fifos
async def test_output_that_does_not_move_is_given_up_after_the_grace(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    streams = await attached(device, endpoints)
    began = asyncio.get_running_loop().time()
    assert not await streams.drained(0.05, 10)
    assert asyncio.get_running_loop().time() - began < 1
    streams.close()


@on_fifos
async def test_output_that_keeps_moving_is_waited_for_up_to_the_limit(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    streams = await attached(device, endpoints)
    stdout = device.streams[ports_of(streams).stdout]

    async def flow() -> None:
        while True:
            stdout.moved += 1
            await asyncio.sleep(0.01)

    flowing = asyncio.create_task(flow())
    began = asyncio.get_running_loop().time()
    assert not await streams.drained(0.1, 0.4)
    assert 0.4 <= asyncio.get_running_loop().time() - began < 2
    flowing.cancel()
    streams.close()


async def said(device: FakeVsockDevice, endpoints: Endpoints, data: bytes) -> Streams:
    """A process that has written `data` and nothing else, and has ended."""
    streams = await attached(device, endpoints)
    device.streams[ports_of(streams).stdout].write(data)
    device.streams[ports_of(streams).stdout].finish()
    device.streams[ports_of(streams).stderr].finish()
    return streams


@on_fifos
async def test_a_reader_that_is_behind_takes_all_before_the_end_is_told(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    reader = os.open(str(endpoints.stdout), os.O_RDONLY | os.O_NONBLOCK)
    streams = await said(device, endpoints, b"123")
    waiting = asyncio.create_task(streams.drained(5, 5))
    for last in b"123":
        await asyncio.sleep(0.02)
        assert not waiting.done()
        assert os.read(reader, 1) == bytes([last])
    assert await waiting
    os.close(reader)
    streams.close()


@on_fifos
async def test_a_reader_that_is_stuck_is_waited_for_up_to_the_grace(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    reader = os.open(str(endpoints.stdout), os.O_RDONLY | os.O_NONBLOCK)
    streams = await said(device, endpoints, b"unread")
    began = asyncio.get_running_loop().time()
    assert await streams.drained(0.1, 5)
    assert 0.1 <= asyncio.get_running_loop().time() - began < 4
    assert os.read(reader, 10) == b"unread"
    os.close(reader)
    streams.close()


@on_fifos
async def test_output_that_nobody_reads_is_not_waited_for(
    device: FakeVsockDevice, endpoints: Endpoints
) -> None:
    streams = await said(device, endpoints, b"unread")
    async with asyncio.timeout(4):
        assert await streams.drained(5, 5)
    reader = os.open(str(endpoints.stdout), os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 10) == b"unread"
    os.close(reader)
    streams.close()


# -- what is not a FIFO --------------------------------------------------------------------------------------


def test_other_files_are_opened_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old ")
    keeper, fd = open_output(str(file))
    assert keeper is None
    os.write(fd, b"new")
    os.close(fd)
    assert file.read_bytes() == b"old new"
    fd = open_input("/dev/null")
    assert stat.S_ISCHR(os.fstat(fd).st_mode)
    os.close(fd)


def test_directories_and_sockets_are_refused(tmp_path: Path) -> None:
    import socket

    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        for bad in (tmp_path, path):
            with pytest.raises(InvalidArgument, match=str(bad)):
                open_output(str(bad))
            with pytest.raises(InvalidArgument, match=str(bad)):
                open_input(str(bad))
