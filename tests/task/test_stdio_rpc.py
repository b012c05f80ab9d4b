"""stdio by RPC through the Task service: the same promises as with passed streams."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shim.agent.api import ProcessIds
from shim.errors import FailedPrecondition, Internal, Unavailable
from shim.pb.containerd.task import v2
from shim.vsock.api import StreamRefused, StreamStat
from tests.sandbox.genuine import read_fifo
from tests.sandbox.stack import Stack, until, with_stack

INIT, EXEC = ProcessIds("c1"), ProcessIds("c1", "e1")


class RpcStack(Stack):
    """With `use_passfd_io = false`."""

    port = 0

    async def close_io(self, exec_id: str = "") -> None:
        await self.task.close_io(v2.CloseIoRequest(id="c1", exec_id=exec_id, stdin=True))

    def log_text(self) -> str:
        return (self.directory / "log").read_text()


def by_rpc(test: Callable[[RpcStack], Awaitable[None]]) -> Callable[[Path], None]:
    return with_stack(test, RpcStack)  # type: ignore[arg-type]


def reading(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


def writing(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_NONBLOCK)


@by_rpc
async def test_no_byte_of_a_burst_is_lost_and_the_exit_comes_behind_it(shim: RpcStack) -> None:
    fifos = shim.fifos("stdout", "stderr")
    out, err = reading(fifos["stdout"]), reading(fifos["stderr"])
    payload = os.urandom(3_000_000)
    await shim.run(**fifos)
    assert shim.agent.ports[INIT] is None
    assert not shim.device.streams
    waiter = asyncio.create_task(shim.wait())
    shim.agent.print(INIT, "stdout", payload)
    shim.agent.print(INIT, "stderr", b"oops")
    shim.agent.exit("c1", code=3)
    await asyncio.sleep(0.01)
    assert not waiter.done(), "most of it is still in the guest"
    assert await read_fifo(out) == payload
    assert await read_fifo(err) == b"oops"
    assert await waiter == 3
    counters = await shim.sandbox.container("c1").process("").counters()
    assert (counters["stdout"].rx, counters["stderr"].rx) == (3_000_000, 4)
    assert counters["stdout"].stalls > 0
    os.close(out)
    os.close(err)


@by_rpc
async def test_a_reader_that_stands_still_stops_the_fetching(shim: RpcStack) -> None:
    fifos = shim.fifos("stdout")
    out = reading(fifos["stdout"])
    await shim.run(**fifos)
    shim.agent.print(INIT, "stdout", bytes(2_000_000))
    await asyncio.sleep(0.05)
    first = shim.agent.unread(INIT, "stdout")
    assert first >= 2_000_000 - (256 << 10) - (1 << 20), "a chunk and a FIFO at most"
    await asyncio.sleep(0.05)
    assert shim.agent.unread(INIT, "stdout") == first
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    shim.agent.exit("c1", "e1", 4)
    assert await shim.wait(exec_id="e1") == 4, "others go on"
    os.close(out)


@by_rpc
async def test_a_client_that_detaches_and_one_that_comes_later_get_it_all(shim: RpcStack) -> None:
    fifos = shim.fifos("stdin", "stdout")
    await shim.run(**fifos)
    shim.agent.print(INIT, "stdout", b"before anybody reads, ")
    os.close(reading(fifos["stdout"]))
    shim.agent.print(INIT, "stdout", b"and after one has gone")
    client = writing(fifos["stdin"])
    os.write(client, b"one ")
    os.close(client)
    await until(lambda: bytes(shim.agent.input.get(INIT, b"")) == b"one ")
    client = writing(fifos["stdin"])
    os.write(client, b"two")
    os.close(client)
    await until(lambda: bytes(shim.agent.input[INIT]) == b"one two")
    assert INIT not in shim.agent.closed
    shim.agent.exit("c1")
    await shim.wait()
    out = reading(fifos["stdout"])
    assert await read_fifo(out) == b"before anybody reads, and after one has gone"
    os.close(out)


@by_rpc
async def test_input_ends_with_close_io_behind_its_last_byte(shim: RpcStack) -> None:
    fifos = shim.fifos("stdin")
    await shim.run(**fifos)
    shim.agent.hold["write_stdin"] = slow = asyncio.Event()
    client = writing(fifos["stdin"])
    payload = os.urandom(65_536)  # as much as a FIFO holds
    os.write(client, payload)
    os.close(client)
    await shim.close_io()
    await shim.close_io()
    assert INIT not in shim.agent.closed
    slow.set()
    await until(lambda: INIT in shim.agent.closed)
    assert bytes(shim.agent.input[INIT]) == payload
    assert (await shim.sandbox.container("c1").process("").counters())["stdin"] == StreamStat(0, 65_536, 0)


@by_rpc
async def test_an_end_of_input_from_before_the_start_comes_with_it(shim: RpcStack) -> None:
    fifos = shim.fifos("stdin")
    await shim.create(**fifos)
    client = writing(fifos["stdin"])
    os.write(client, b"all")
    os.close(client)
    await asyncio.sleep(0.01)
    assert INIT not in shim.agent.input, "nobody is there to read it yet"
    await shim.start()
    await until(lambda: INIT in shim.agent.closed)
    assert shim.agent.input[INIT] == b"all"
    await shim.exec("e1", **fifos)
    await shim.close_io("e1")
    await shim.start(exec_id="e1")
    await until(lambda: EXEC in shim.agent.closed)


@by_rpc
async def test_without_stdin_the_process_sees_its_end_and_output_nobody_wants_is_thrown_away(
    shim: RpcStack,
) -> None:
    await shim.run()
    assert INIT in shim.agent.closed
    shim.agent.print(INIT, "stdout", bytes(1_000_000))
    shim.agent.print(INIT, "stderr", bytes(1_000_000))
    await until(lambda: not shim.agent.unread(INIT, "stdout") and not shim.agent.unread(INIT, "stderr"))


@by_rpc
async def test_a_terminal_has_one_output_and_an_input_without_end(shim: RpcStack) -> None:
    fifos = shim.fifos("stdin", "stdout", "stderr")
    out = reading(fifos["stdout"])
    await shim.run(terminal=True, **fifos)
    with pytest.raises(OSError, match="No such device"):
        writing(fifos["stderr"])
    client = writing(fifos["stdin"])
    os.write(client, b"ls\n")
    os.close(client)
    await shim.close_io()
    await until(lambda: bytes(shim.agent.input.get(INIT, b"")) == b"ls\n")
    shim.agent.print(INIT, "stdout", b"bin\r\n")
    shim.agent.exit("c1")
    assert await shim.wait() == 0
    assert await read_fifo(out) == b"bin\r\n"
    assert INIT not in shim.agent.closed, "the genuine agent would take the terminal away"
    assert "read_stderr" not in shim.agent.calls
    os.close(out)


@by_rpc
async def test_a_process_that_reads_no_more_breaks_its_client(shim: RpcStack) -> None:
    fifos = shim.fifos("stdin")
    await shim.run(**fifos)
    shim.agent.fail["write_stdin"] = FailedPrecondition("the process has closed its stdin")
    client = writing(fifos["stdin"])
    os.write(client, b"x")
    await until(lambda: "stdio by RPC has ended" in shim.log_text())
    with pytest.raises(BrokenPipeError):
        os.write(client, b"y")
    os.close(client)


@by_rpc
async def test_a_client_of_an_ended_process_is_broken(shim: RpcStack) -> None:
    fifos = shim.fifos("stdin")
    await shim.run(**fifos)
    client = writing(fifos["stdin"])
    shim.agent.exit("c1")
    await shim.wait()
    with pytest.raises(BrokenPipeError):
        os.write(client, b"y")
    os.close(client)


@by_rpc
async def test_a_failed_start_ends_the_fifos_and_tells_no_exit(shim: RpcStack) -> None:
    await shim.run()
    fifos = shim.fifos("stdin", "stdout")
    out = reading(fifos["stdout"])
    await shim.exec("e1", **fifos)
    shim.agent.fail["exec_process"] = Internal("no such program")
    with pytest.raises(Internal):
        await shim.start(exec_id="e1")
    assert await read_fifo(out) == b""
    with pytest.raises(OSError, match="No such device"):
        writing(fifos["stdin"])
    assert "TaskExited:e1" not in shim.told()
    os.close(out)


@by_rpc
async def test_files_are_appended_to(shim: RpcStack) -> None:
    log = shim.directory / "new/folder/log"
    await shim.run(stdout=f"file://{log}", stderr=f"file://{log}")
    shim.agent.print(INIT, "stdout", b"out\n")
    await until(lambda: log.read_bytes() == b"out\n")
    shim.agent.print(INIT, "stderr", b"err\n")
    shim.agent.exit("c1")
    await shim.wait()
    assert log.read_bytes() == b"out\nerr\n"


@by_rpc
async def test_output_that_cannot_be_written_does_not_stop_the_process(shim: RpcStack) -> None:
    await shim.run(stdout="/dev/full")
    shim.agent.print(INIT, "stdout", bytes(1_000_000))
    await until(lambda: not shim.agent.unread(INIT, "stdout"))
    assert "No space left" in shim.log_text()
    shim.agent.exit("c1")
    assert await shim.wait() == 0


@by_rpc
async def test_a_lost_agent_ends_it_all(shim: RpcStack) -> None:
    fifos = shim.fifos("stdin", "stdout")
    out = reading(fifos["stdout"])
    await shim.run(**fifos)
    shim.agent.lose()
    assert await read_fifo(out) == b""
    assert await shim.wait() == 255
    os.close(out)


@by_rpc
async def test_an_agent_that_forgets_is_asked_for_the_exit_behind_the_output(shim: RpcStack) -> None:
    shim.agent.forgets_ended = True
    fifos = shim.fifos("stdout")
    out = reading(fifos["stdout"])
    await shim.run(**fifos)
    shim.agent.print(INIT, "stdout", bytes(500_000))
    shim.agent.exit("c1", code=6)
    await asyncio.sleep(0.02)
    assert "wait_process" not in shim.agent.calls
    assert len(await read_fifo(out)) == 500_000
    assert await shim.wait() == 6
    os.close(out)


@by_rpc
async def test_an_agent_that_forgets_is_asked_all_the_same_when_the_reader_is_stuck(shim: RpcStack) -> None:
    shim.agent.forgets_ended = True
    fifos = shim.fifos("stdout")
    out = reading(fifos["stdout"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shim.stdio.copy._STUCK_S", 0.02)
        await shim.run(**fifos)
        shim.agent.print(INIT, "stdout", bytes(500_000))
        shim.agent.exit("c1", code=137)
        assert await shim.wait() == 137
    os.close(out)


# -- when it is chosen ---------------------------------------------------------------------------------------


@with_stack
async def test_a_guest_that_takes_no_stream_gets_stdio_by_rpc(shim: Stack) -> None:
    shim.device.fail = StreamRefused("nobody listens")
    fifos = shim.fifos("stdout", "stderr")
    out = reading(fifos["stdout"])
    await shim.run(**fifos)
    assert shim.agent.ports[INIT] is None
    shim.agent.print(INIT, "stdout", b"hello")
    shim.agent.exit("c1")
    assert await read_fifo(out) == b"hello"
    assert await shim.wait() == 0
    assert (shim.directory / "log").read_text().count("streams cannot be passed") == 1
    os.close(out)


@with_stack
async def test_after_a_stream_was_taken_a_refusal_is_an_error(shim: Stack) -> None:
    await shim.run(**shim.fifos("stdout"))
    shim.device.fail = StreamRefused("too many")
    await shim.exec("e1", **shim.fifos("stderr"))
    with pytest.raises(Unavailable, match="too many"):
        await shim.start(exec_id="e1")
