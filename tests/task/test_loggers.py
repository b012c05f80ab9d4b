"""Logger programs through the Task service."""

from __future__ import annotations

import os

import pytest

from shim.errors import Internal
from tests.sandbox.stack import Stack, until, with_stack

# Both outputs to one file, the end of each marked.
COLLECT = """#!/bin/sh
{ cat; echo "[end of out]"; } <&3 >>$2 5>&- &
{ cat; echo "[end of err]"; } <&4 >>$2 5>&- &
exec 5>&-
wait
echo "$CONTAINER_ID of $CONTAINER_NAMESPACE" >>$2
"""


def logger(shim: Stack, text: str = COLLECT) -> tuple[str, str]:
    """The URI of a logger, and the file it writes."""
    program, out = shim.directory / "logger", shim.directory / "collected"
    program.write_text(text)
    program.chmod(0o755)
    return f"binary://{program}?out={out}", str(out)


def read(path: str) -> str:
    with open(path) as file:
        return file.read()


@with_stack
async def test_delete_comes_when_the_logger_has_all_of_it(shim: Stack) -> None:
    shim.device.automatic = False
    uri, out = logger(shim)
    await shim.run(stdout=uri, stderr=uri)
    assert [process.role for process in shim.record.processes if process.role == "logger"] == ["logger"]
    shim.stream(0).write(b"one\n")
    await until(lambda: os.path.exists(out) and read(out) == "one\n")
    shim.stream(1).write(b"two\n")
    shim.stream(0).finish()
    shim.stream(1).finish()
    shim.agent.exit("c1", code=2)
    assert await shim.wait() == 2
    assert (await shim.delete()).exit_status == 2
    lines = read(out).splitlines()
    assert lines[-1] == "c1 of ns"
    assert sorted(lines) == ["[end of err]", "[end of out]", "c1 of ns", "one", "two"]
    assert not [process for process in shim.record.processes if process.role == "logger"]


@with_stack
async def test_a_terminals_logger_has_no_second_output(shim: Stack) -> None:
    shim.device.automatic = False
    uri, out = logger(shim)
    await shim.run(terminal=True, stdout=uri, stderr=uri)
    assert len(shim.device.streams) == 1
    await until(lambda: os.path.exists(out) and read(out) == "[end of err]\n")
    shim.stream(0).finish()
    shim.agent.exit("c1")
    assert await shim.wait() == 0
    await shim.delete()


@with_stack
async def test_one_output_may_go_to_a_logger_and_the_other_elsewhere(shim: Stack) -> None:
    shim.device.automatic = False
    uri, out = logger(shim)
    fifos = shim.fifos("stderr")
    reader = os.open(fifos["stderr"], os.O_RDONLY | os.O_NONBLOCK)
    await shim.run(stdout=uri, **fifos)
    shim.stream(1).write(b"to the fifo")
    assert os.read(reader, 100) == b"to the fifo"
    shim.stream(0).write(b"to the logger\n")
    await until(lambda: os.path.exists(out) and "to the logger" in read(out))
    os.close(reader)


@with_stack
async def test_a_logger_that_fails_fails_the_create_and_leaves_nothing(shim: Stack) -> None:
    uri, _ = logger(shim, "#!/bin/sh\necho no disk >&2\nexit 4\n")
    with pytest.raises(Internal, match=r"ended before it was ready.*exit status 4: no disk"):
        await shim.create(stdout=uri)
    assert not shim.device.streams
    assert "c1" not in shim.sandbox.containers


@with_stack
async def test_a_start_that_fails_ends_its_logger(shim: Stack) -> None:
    await shim.run()
    uri, out = logger(shim)
    await shim.exec("e1", stdout=uri, stderr=uri)
    shim.agent.fail["exec_process"] = Internal("no")
    with pytest.raises(Internal):
        await shim.start(exec_id="e1")
    await shim.delete(exec_id="e1")
    assert read(out).splitlines()[-1] == "c1 of ns"
    assert not [process for process in shim.record.processes if process.role == "logger"]


@with_stack
async def test_the_end_of_the_sandbox_is_the_end_of_its_loggers(shim: Stack) -> None:
    shim.device.automatic = False
    uri, out = logger(shim)
    await shim.run(stdout=uri, stderr=uri)
    shim.stream(0).write(b"last words\n")
    shim.hypervisor.die()
    assert await shim.wait() == 137
    await shim.sandbox.aclose()
    assert read(out).splitlines()[-1] == "c1 of ns"
    assert "last words\n" in read(out)
