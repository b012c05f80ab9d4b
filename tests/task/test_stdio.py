"""stdio through the Task service: when exits may be told, and what CloseIO does."""

from __future__ import annotations

import asyncio
import os

import pytest

from shim.agent.api import ProcessIds, StdioPorts
from shim.errors import Internal
from shim.pb.containerd.task import v2
from shim.vsock.api import StreamStat
from tests.sandbox.stack import Stack, until, with_stack

INIT = ProcessIds("c1")


@with_stack
async def test_an_exit_is_told_after_the_last_byte_is_in_the_fifo(shim: Stack) -> None:
    shim.device.automatic = False
    fifos = shim.fifos("stdout", "stderr")
    await shim.run(**fifos)
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    waiter = asyncio.create_task(shim.wait())
    shim.agent.exit("c1", code=5)
    stdout, stderr = shim.stream(0), shim.stream(1)
    stdout.write(b"last words")
    stderr.finish()
    for _ in range(20):
        await asyncio.sleep(0)
    assert not waiter.done()
    assert "TaskExited:c1" not in shim.told()
    stdout.finish()
    assert await waiter == 5
    assert os.read(reader, 100) == b"last words"
    assert os.read(reader, 100) == b""
    os.close(reader)
    await shim.delete()


@with_stack
async def test_a_child_that_keeps_stdout_does_not_keep_the_exit(shim: Stack) -> None:
    shim.device.automatic = False
    await shim.run()
    await shim.exec("e1", **shim.fifos("stdout"))
    await shim.start(exec_id="e1")
    shim.agent.exit("c1", "e1", 0)
    assert await shim.wait(exec_id="e1") == 0
    await shim.delete(exec_id="e1")
    await until(lambda: shim.stream(0).abandoned)  # or its reader would wait for the child
    await until(lambda: shim.stream(0).closed)


@with_stack
async def test_output_whose_reader_is_behind_is_left_to_it(shim: Stack) -> None:
    shim.device.automatic = False
    fifos = shim.fifos("stdout")
    await shim.run(**fifos)
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    shim.stream(0).write(b"unread")
    shim.agent.exit("c1")
    assert await shim.wait() == 0
    await shim.delete()
    await asyncio.sleep(0.6)
    assert not shim.stream(0).abandoned
    assert os.read(reader, 100) == b"unread"
    await until(lambda: shim.stream(0).abandoned)
    assert os.read(reader, 100) == b""
    os.close(reader)


@with_stack
async def test_output_whose_reader_has_gone_goes_with_its_process(shim: Stack) -> None:
    """`kubectl exec … yes`, and Ctrl-C: nobody will ever read the rest, and a pod may see thousands of those."""
    shim.device.automatic = False
    await shim.run()
    fifos = shim.fifos("stdout")
    await shim.exec("e1", **fifos)
    await shim.start(exec_id="e1")
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    shim.stream(0).write(b"unread")
    os.close(reader)
    shim.agent.exit("c1", "e1", 137)
    assert await shim.wait(exec_id="e1") == 137
    await asyncio.sleep(0.5)
    assert not shim.stream(0).abandoned  # who attaches now may still read it
    await shim.delete(exec_id="e1")
    await asyncio.sleep(0.5)
    assert not shim.stream(0).abandoned  # and so it may now, as long as the FIFO is there
    os.unlink(fifos["stdout"])
    await until(lambda: shim.stream(0).abandoned)
    await until(lambda: shim.stream(0).closed)


@with_stack
async def test_every_kind_of_stream_has_its_port(shim: Stack) -> None:
    await shim.run(**shim.fifos("stdin", "stdout", "stderr"))
    assert shim.agent.ports[INIT] == StdioPorts(0x40000000, 0x40000001, 0x40000002)
    await shim.exec("e1", terminal=True, **shim.fifos("stdin", "stdout", "stderr"))
    await shim.start(exec_id="e1")
    assert shim.agent.ports[ProcessIds("c1", "e1")].stderr == 0
    await shim.exec("e2")
    await shim.start(exec_id="e2")
    assert shim.agent.ports[ProcessIds("c1", "e2")] == StdioPorts(0, 0, 0)


@with_stack
async def test_closing_stdin_reaches_the_stream_whenever_it_is_asked(shim: Stack) -> None:
    async def close(exec_id: str = "") -> None:
        await shim.task.close_io(v2.CloseIoRequest(id="c1", exec_id=exec_id, stdin=True))

    await shim.create(**shim.fifos("stdin"))
    await close()  # before Start
    await until(lambda: shim.stream(0).eofs == 1)
    await shim.start()
    await shim.exec("e1", **shim.fifos("stdin"))
    await close("e1")  # before there is a stream
    await shim.start(exec_id="e1")
    await until(lambda: shim.stream(1).eofs == 1)
    assert "close_stdin" not in shim.agent.calls, "the agent would cut off what is on its way"
    await shim.task.close_io(v2.CloseIoRequest(id="c1"))  # not stdin: nothing
    shim.agent.exit("c1")
    await shim.wait()
    await close()


@with_stack
async def test_a_device_that_cannot_end_a_stream_leaves_it_to_the_agent(shim: Stack) -> None:
    await shim.run(**shim.fifos("stdin"))
    shim.stream(0).knows_eof = False
    await shim.task.close_io(v2.CloseIoRequest(id="c1", stdin=True))
    await until(lambda: "close_stdin" in shim.agent.calls)


@with_stack
async def test_input_that_ended_before_the_start_ends_with_it(shim: Stack) -> None:
    paths = shim.fifos("stdin")
    await shim.create(**paths)
    client = os.open(paths["stdin"], os.O_WRONLY | os.O_NONBLOCK)
    os.write(client, b"all")
    os.close(client)
    assert shim.stream(0).eofs == 0
    await shim.start()
    assert shim.stream(0).eofs == 1


@with_stack
async def test_a_start_that_fails_gives_up_the_streams(shim: Stack) -> None:
    await shim.run()
    shim.device.automatic = False
    fifos = shim.fifos("stdin", "stdout")
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    await shim.exec("e1", **fifos)
    shim.agent.fail["exec_process"] = Internal("no")
    with pytest.raises(Internal):
        await shim.start(exec_id="e1")
    assert all(stream.abandoned and stream.closed for stream in shim.device.streams.values())
    assert os.read(reader, 100) == b"", "the client sees the end at once"
    with pytest.raises(OSError, match="No such device"):
        os.open(fifos["stdin"], os.O_WRONLY | os.O_NONBLOCK)
    assert await shim.wait(exec_id="e1") == 255
    assert "TaskExited:e1" not in shim.told()
    os.close(reader)


@with_stack
async def test_a_terminal_never_opens_stderr(shim: Stack) -> None:
    fifos = shim.fifos("stdout", "stderr")
    await shim.run(terminal=True, **fifos)
    with pytest.raises(OSError, match="No such device"):
        os.open(fifos["stderr"], os.O_WRONLY | os.O_NONBLOCK)
    assert len(shim.device.streams) == 1


@with_stack
async def test_an_exec_has_a_terminal_when_the_request_says_so_whatever_its_spec_does(shim: Stack) -> None:
    """As in runc's shim: the client that opens the FIFOs knows."""
    await shim.run()
    await shim.exec("e1", terminal=True, **shim.fifos("stdin", "stdout"))
    await shim.start(exec_id="e1")
    assert shim.agent.specs[ProcessIds("c1", "e1")]["terminal"] is True


@with_stack
async def test_stdout_and_stderr_may_be_one_fifo(shim: Stack) -> None:
    shim.device.automatic = False
    path = shim.fifos("stdout")["stdout"]
    await shim.run(stdout=path, stderr=path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    shim.stream(0).write(b"out ")
    shim.stream(1).write(b"err")
    shim.stream(0).finish()
    assert os.read(reader, 100) == b"out err"
    with pytest.raises(BlockingIOError):
        os.read(reader, 100)
    shim.stream(1).finish()
    assert os.read(reader, 100) == b""
    os.close(reader)


@with_stack
async def test_a_file_is_written_by_the_device(shim: Stack) -> None:
    shim.device.automatic = False
    log = shim.directory / "logs/c1/log"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"before\n")
    await shim.run(stdout=f"file://{log}", stderr=f"file://{log}")
    shim.stream(0).write(b"out\n")
    shim.stream(1).write(b"err\n")
    shim.stream(0).write(b"out\n")
    assert log.read_bytes() == b"before\nout\nerr\nout\n"
    await shim.exec("e1", stdout=f"file://{shim.directory}/a/b/c")
    await shim.start(exec_id="e1")
    for path, mode in (("a", 0o755), ("a/b", 0o755), ("a/b/c", 0o644)):
        assert (shim.directory / path).stat().st_mode & 0o777 == mode


@with_stack
async def test_a_create_that_fails_gives_up_the_streams(shim: Stack) -> None:
    shim.agent.fail["create_container"] = Internal("no")
    with pytest.raises(Internal):
        await shim.create(**shim.fifos("stdin", "stdout"))
    assert len(shim.device.streams) == 2
    assert all(stream.closed and stream.abandoned for stream in shim.device.streams.values())


@with_stack
async def test_streams_are_kept_until_delete(shim: Stack) -> None:
    fifos = shim.fifos("stdout")
    await shim.run(**fifos)
    shim.stream(0).write(b"for a late reader")
    shim.stream(0).finish()
    shim.agent.exit("c1")
    await shim.wait()
    reader = os.open(fifos["stdout"], os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 100) == b"for a late reader"
    os.close(reader)
    await shim.delete()
    assert shim.stream(0).closed


@with_stack
async def test_what_went_through_the_streams_is_counted_and_logged_at_the_exit(shim: Stack) -> None:
    shim.device.automatic = False
    await shim.run(**shim.fifos("stdin", "stdout"))
    process = shim.sandbox.container("c1").process("")
    assert await process.counters() == {"stdin": StreamStat(0, 0, 0), "stdout": StreamStat(0, 0, 0)}
    shim.stream(1).write(b"12345")
    assert (await process.counters())["stdout"].rx == 5
    shim.stream(1).finish()
    shim.agent.exit("c1", code=3)
    await shim.wait()
    assert (await process.counters())["stdout"].rx == 5, "also afterwards"
    (line,) = [line for line in (shim.directory / "log").read_text().splitlines() if "has ended" in line]
    assert "level=info" in line
    assert 'container=c1 exec="" code=3 stdin=0 stdout=5 stalls=0 drained=True' in line
