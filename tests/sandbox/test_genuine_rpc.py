"""stdio by RPC with an agent that is not ours: it forgets a process with its exit. See `tests.fakes.genuine_agent`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from tests.sandbox.genuine import PASSFD_PORT, GenuineStack, read_fifo, with_genuine
from tests.sandbox.stack import with_stack


class GenuineRpcStack(GenuineStack):
    """With `use_passfd_io = false`."""

    port = 0


def by_rpc(test: Callable[[GenuineStack], Awaitable[None]]) -> Callable[[Path], None]:
    return with_stack(test, GenuineRpcStack)  # type: ignore[arg-type]


def reading(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK)


@by_rpc
async def test_everything_is_read_before_the_exit_is_asked_for(shim: GenuineStack) -> None:
    fifos = shim.fifos("stdout", "stderr")
    out, err = reading(fifos["stdout"]), reading(fifos["stderr"])
    await shim.run(**fifos)
    os.write(shim.process().stderr, b"oops")
    shim.process().write(b"x" * 60_000)
    shim.guest.end("c1", code=7)
    assert await shim.wait() == 7
    assert await read_fifo(out) == b"x" * 60_000
    assert await read_fifo(err) == b"oops"
    assert shim.guest.calls.count("WaitProcess") == 1
    os.close(out)
    os.close(err)


@by_rpc
async def test_an_exec_without_output_fifos_does_not_stop_at_a_full_pipe(shim: GenuineStack) -> None:
    await shim.run()
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    process = shim.process("e1")
    assert await asyncio.wait_for(process.read(), 5) == b"", "no stdin is the end of stdin"
    os.set_blocking(process.stdout, False)
    sent = 0
    while sent < 1_000_000:
        try:
            sent += os.write(process.stdout, bytes(65536))
        except BlockingIOError:
            await asyncio.sleep(0.001)
    shim.guest.end("c1", "e1", code=1)
    assert await shim.wait(exec_id="e1") == 1


@by_rpc
async def test_input_ends_behind_its_last_byte(shim: GenuineStack) -> None:
    fifos = shim.fifos("stdin")
    await shim.run(**fifos)
    client = os.open(fifos["stdin"], os.O_WRONLY | os.O_NONBLOCK)
    payload = os.urandom(65_536)
    os.write(client, payload)
    os.close(client)
    await shim.close_io()
    data = b""
    while chunk := await asyncio.wait_for(shim.process().read(), 5):
        data += chunk
        await asyncio.sleep(0.001)
    assert data == payload


@by_rpc
async def test_a_child_that_holds_the_output_does_not_keep_the_exit(shim: GenuineStack) -> None:
    fifos = shim.fifos("stdout")
    out = reading(fifos["stdout"])
    await shim.run()
    await shim.exec("e1", **fifos)
    await shim.start(exec_id="e1")
    shim.process("e1").write(b"said\n")
    shim.guest.end("c1", "e1", code=4, child=True)
    assert await shim.wait(exec_id="e1") == 4
    assert await read_fifo(out) == b"said\n"
    os.close(out)


@by_rpc
async def test_a_terminal_is_read_and_written_and_never_taken_away(shim: GenuineStack) -> None:
    fifos = shim.fifos("stdin", "stdout")
    out = reading(fifos["stdout"])
    client = os.open(fifos["stdin"], os.O_RDWR | os.O_NONBLOCK)
    await shim.run(terminal=True, spec={"process": {"args": ["sh"], "cwd": "/", "terminal": True}}, **fifos)
    os.write(client, b"typed\n")
    assert await asyncio.wait_for(shim.process().read(), 5) == b"typed\n"
    await shim.close_io()
    shim.process().write(b"shown\n")
    await asyncio.sleep(0.02)
    assert "CloseStdin" not in shim.guest.calls
    shim.guest.end("c1")
    assert await shim.wait() == 0
    assert await read_fifo(out) == b"typed\r\nshown\r\n"
    os.close(out)
    os.close(client)


@by_rpc
async def test_a_container_that_was_never_started_ends_when_it_is_deleted(shim: GenuineStack) -> None:
    await shim.create(**shim.fifos("stdin", "stdout"))
    assert (await shim.delete()).exit_status == 137
    assert "did not end" not in (shim.directory / "log").read_text()


@with_genuine
async def test_an_agent_that_takes_no_streams_is_found_out_at_the_first(shim: GenuineStack) -> None:
    del shim.dragonball.ports[PASSFD_PORT]
    fifos = shim.fifos("stdout")
    out = reading(fifos["stdout"])
    await shim.run(**fifos)
    shim.process().write(b"by rpc")
    shim.guest.end("c1")
    assert await shim.wait() == 0
    assert await read_fifo(out) == b"by rpc"
    os.close(out)
