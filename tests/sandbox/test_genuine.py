"""Our shim with an agent and a device that are not ours. See `tests.fakes.genuine_agent` for how they differ."""

from __future__ import annotations

import asyncio
import os

import pytest

from shim.errors import DeadlineExceeded, NotFound
from shim.pb.containerd.task import v2
from shim.pb.containerd.v1.types import Status
from tests.fakes.dragonball import write_all
from tests.sandbox.genuine import GenuineStack, read_fifo, with_genuine
from tests.sandbox.stack import until


@with_genuine
async def test_a_container_lives_from_create_to_shutdown(shim: GenuineStack) -> None:
    fifos = shim.fifos("stdin", "stdout", "stderr")
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    await shim.run(**fifos)
    waiter = asyncio.create_task(shim.wait())
    payload = os.urandom(300_000)

    async def program() -> None:
        for at in range(0, len(payload), 50_000):
            shim.process().write(payload[at : at + 50_000])
            await asyncio.sleep(0.001)
        shim.guest.end("c1", code=7)

    running = asyncio.create_task(program())
    await running
    assert await read_fifo(reader) == payload
    assert await waiter == 7
    assert (await shim.delete()).exit_status == 7
    await shim.shutdown()
    assert shim.told() == ["TaskCreated:c1", "TaskStarted:c1", "TaskExited:c1", "TaskDeleted:c1"]
    assert shim.guest.calls.count("WaitProcess") == 1, "a second one finds nothing"
    os.close(reader)


@with_genuine
async def test_an_output_that_nobody_reads_holds_the_exit_and_nothing_of_the_hosts(
    shim: GenuineStack,
) -> None:
    """The agent does not answer anybody while it drains. What the shim knows by itself it goes on telling."""
    fifos = shim.fifos("stdout")
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    await shim.run(**fifos)
    process = shim.process()
    os.set_blocking(process.stdout, False)
    sent = 0
    quiet = 0
    while quiet < 20:  # until the FIFO, the device and the pipe are full
        try:
            sent += os.write(process.stdout, bytes(4096))
            quiet = 0
        except BlockingIOError:
            quiet += 1
        await asyncio.sleep(0.001)
    waiter = asyncio.create_task(shim.wait())
    shim.guest.end("c1", code=3)
    await asyncio.sleep(0.02)
    assert not waiter.done()
    await shim.state()
    assert len(await read_fifo(reader)) == sent
    assert await waiter == 3
    os.close(reader)


@with_genuine
async def test_a_process_without_stdin_sees_its_end(shim: GenuineStack) -> None:
    """The agent gives every process a pipe that nobody would ever close."""
    await shim.run()
    assert await asyncio.wait_for(shim.process().read(), 5) == b""
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    assert await asyncio.wait_for(shim.process("e1").read(), 5) == b""
    assert b"warning" not in (shim.directory / "log").read_bytes()


@with_genuine
async def test_a_terminal_without_stdin_is_not_taken_away(shim: GenuineStack) -> None:
    await shim.run(terminal=True, **shim.fifos("stdout"))
    await asyncio.sleep(0.02)
    assert "CloseStdin" not in shim.guest.calls
    shim.guest.end("c1")
    assert await shim.wait() == 0


@with_genuine
async def test_input_that_a_slow_process_has_not_read_yet_is_not_lost(shim: GenuineStack) -> None:
    """By a passed stdin it would be, from 64 KiB on."""
    fifos = shim.fifos("stdin")
    data = os.urandom(500_000)
    await shim.run(**fifos)
    writer = os.open(fifos["stdin"], os.O_WRONLY | os.O_NONBLOCK)
    writing = asyncio.create_task(write_all(writer, data))
    await asyncio.sleep(0.02)  # the pipe in the guest is full by now
    read = await shim.process().read()
    while len(read) < len(data):
        read += await asyncio.wait_for(shim.process().read(), 5)
    assert read == data
    await writing
    os.close(writer)
    await asyncio.sleep(0.02)
    assert "CloseStdin" not in shim.guest.calls, "a client that goes away has detached"
    await shim.close_io()
    assert await asyncio.wait_for(shim.process().read(), 5) == b""


@with_genuine
async def test_output_that_nobody_wants_does_not_stop_a_process(shim: GenuineStack) -> None:
    await shim.run()
    stdout = shim.process().stdout
    os.set_blocking(stdout, False)
    await asyncio.wait_for(write_all(stdout, bytes(300_000)), 5)
    shim.guest.end("c1")
    assert await shim.wait() == 0


@with_genuine
async def test_a_terminals_input_goes_by_its_stream_and_its_end_takes_nothing_away(
    shim: GenuineStack,
) -> None:
    fifos = shim.fifos("stdin", "stdout")
    await shim.run(terminal=True, **fifos)
    writer = os.open(fifos["stdin"], os.O_WRONLY | os.O_NONBLOCK)
    os.write(writer, b"typed\n")
    assert await shim.process().read() == b"typed\n"
    os.close(writer)
    await shim.close_io()
    await asyncio.sleep(0.02)
    assert "CloseStdin" not in shim.guest.calls
    shim.guest.end("c1", code=5)
    assert await shim.wait() == 5


@with_genuine
async def test_an_exec_has_containerds_id_and_the_init_process_none(shim: GenuineStack) -> None:
    fifos = shim.fifos("stdout")
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    await shim.run()
    await shim.exec("e1", **fifos)
    await shim.start(exec_id="e1")
    assert set(shim.guest.processes) == {("c1", ""), ("c1", "e1")}
    shim.process("e1").write(b"said\n")
    shim.guest.end("c1", "e1", code=2)
    assert await read_fifo(reader) == b"said\n"
    assert await shim.wait(exec_id="e1") == 2
    with pytest.raises(NotFound, match="process already finished"):
        await shim.kill(exec_id="e1")
    await shim.delete(exec_id="e1")
    os.close(reader)


@with_genuine
async def test_killing_reaches_all_of_a_container(shim: GenuineStack) -> None:
    await shim.run()
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    await shim.kill(9, all=True)
    assert await shim.wait() == 137
    assert await shim.wait(exec_id="e1") == 137
    assert shim.told()[-2:] == ["TaskExited:e1", "TaskExited:c1"]
    await shim.delete()


@with_genuine
async def test_a_terminated_init_process_counts_as_killed(shim: GenuineStack) -> None:
    await shim.run()
    await shim.kill(15)
    assert await shim.wait() == 137


@with_genuine
async def test_a_terminal_has_its_size_before_it_starts(shim: GenuineStack) -> None:
    await shim.create(terminal=True, **shim.fifos("stdin", "stdout"))
    await shim.task.resize_pty(v2.ResizePtyRequest(id="c1", width=77, height=33))
    await shim.start()
    await until(lambda: shim.process().size == (33, 77))
    shim.guest.end("c1")
    assert await shim.wait() == 0


@with_genuine
async def test_a_child_that_holds_an_execs_output_keeps_the_agent_and_not_the_shim(
    shim: GenuineStack,
) -> None:
    """The genuine agent answers nobody until such an output ends, and no end of a stream makes it."""
    fifos = shim.fifos("stdout")
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    await shim.run()
    await shim.exec("e1", **fifos)
    await shim.start(exec_id="e1")
    shim.guest.end("c1", "e1", code=4, child=True)
    await asyncio.sleep(0.01)
    waiter = asyncio.create_task(shim.wait(exec_id="e1"))
    with pytest.raises(DeadlineExceeded):
        await shim.kill(15)
    assert (await shim.state()).status == Status.RUNNING
    shim.process("e1").hang_up()  # the child ends
    assert await waiter == 4
    assert await read_fifo(reader) == b""
    os.close(reader)
