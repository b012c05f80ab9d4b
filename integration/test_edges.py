"""The edges of stdio: who comes late, who leaves, what ends when. On FIFOs of the test's own, without ctr between."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration.conftest import PAYLOAD, assert_whole
from integration.ctr import Ctr
from integration.events import recorded
from integration.exec import Exec, Execs, digest, opened, read_all, read_exactly, read_some

NOT_FOUND, INVALID_ARGUMENT = 5, 3


@pytest.fixture(scope="module")
def execs(ctr: Ctr, box: str) -> Execs:
    return Execs(ctr, box)


# -- who comes late ----------------------------------------------------------------------------------------------


@pytest.mark.vm
def test_a_process_that_is_gone_before_its_fifo_is_opened_has_said_all_it_had_to_say(execs: Execs) -> None:
    """The readers open as `cat` does, which waits for a writer."""
    for script, said in (("echo gone; exit 3", [b"gone\n", b""]), ("echo why >&2; exit 3", [b"", b"why\n"])):
        run = execs.shell(script, streams=("stdout", "stderr"))
        run.start()
        assert run.wait() == 3
        time.sleep(1)
        with ThreadPoolExecutor(2) as pool:
            read = [pool.submit(Path(run.paths[name]).read_bytes) for name in ("stdout", "stderr")]
            assert [future.result(10) for future in read] == said
        assert run.finish() == 3


def test_a_fifo_that_is_opened_two_seconds_late_gets_every_byte(execs: Execs) -> None:
    with execs.running("cat /payload") as run:
        time.sleep(2)
        with opened(run.reader()) as stdout:
            assert_whole(read_all(stdout))
        assert run.wait() == 0


# -- detach and attach -------------------------------------------------------------------------------------------


@pytest.mark.short
@pytest.mark.vm
def test_a_stdin_client_that_leaves_has_detached_and_the_next_one_goes_on(execs: Execs) -> None:
    with execs.running("cat", streams=("stdin", "stdout")) as run, opened(run.reader()) as stdout:
        for word in (b"first", b"second", b"third"):
            with opened(run.writer()) as stdin:
                os.write(stdin, word)
                assert read_exactly(stdout, len(word)) == word
        time.sleep(0.3)
        assert run.runs(), "nobody writes, but nobody has called CloseIO"
        with opened(run.writer()) as stdin:
            os.write(stdin, b"last")
        run.close_stdin()
        assert read_all(stdout) == b"last"
        assert run.wait() == 0


@pytest.mark.vm
def test_nothing_written_before_close_io_is_lost_however_slowly_it_is_read(execs: Execs) -> None:
    """2 MiB are on their way, in the FIFO, in the connection and in a pipe, when CloseIO comes."""
    script = (
        "sleep 1.5; { for i in 1 2 3 4; do dd bs=64k count=2 2>/dev/null; sleep 0.2; done; cat; } | sha256sum"
    )
    sent = PAYLOAD[: 2 << 20]
    with execs.running(script, streams=("stdin", "stdout")) as run, opened(run.reader()) as stdout:
        with opened(run.writer()) as stdin:
            started = time.monotonic()
            left = memoryview(sent)
            while left:
                left = left[os.write(stdin, left) :]
            assert time.monotonic() - started < 1.5, "all of it was written before the process read any"
        run.close_stdin()
        run.close_stdin()
        assert time.monotonic() - started < 1.5, "CloseIO waits for nobody"
        assert read_all(stdout).split()[0].decode() == digest(sent)
        assert run.wait() == 0


def test_close_io_is_legal_without_stdin_after_the_exit_and_twice(execs: Execs) -> None:
    run = execs.new("true")
    run.close_stdin()
    run.start()
    assert run.wait() == 0
    run.close_stdin()
    run.close_stdin()
    assert run.finish() == 0


@pytest.mark.vm
def test_close_io_before_the_start_ends_the_input_behind_what_is_in_the_fifo(execs: Execs) -> None:
    run = execs.new("cat", streams=("stdin", "stdout"))
    both = os.open(run.paths["stdin"], os.O_RDWR)
    with opened(run.reader()) as stdout:
        with opened(both):
            os.write(both, b"early")
            run.close_stdin()
            run.start()
        assert read_all(stdout) == b"early"
    assert run.finish() == 0


# -- without, and on one path ------------------------------------------------------------------------------------


def test_an_exec_without_stdin_reads_the_end_at_once(execs: Execs) -> None:
    run = execs.shell("cat; echo end")
    with opened(run.reader()) as stdout:
        run.start()
        started = time.monotonic()
        assert read_all(stdout) == b"end\n"
        assert time.monotonic() - started < 5
    assert run.finish() == 0


def test_stdout_and_stderr_may_be_one_fifo(execs: Execs) -> None:
    script = "echo out; echo err >&2; exec 1>&-; sleep 0.3; echo more >&2"
    run = execs.shell(script, shared=True)
    with opened(run.reader()) as both:
        run.start()
        assert sorted(read_all(both).split()) == [b"err", b"more", b"out"]
    assert run.finish() == 0


@pytest.mark.short
def test_the_stderr_fifo_of_a_terminal_is_never_opened(execs: Execs) -> None:
    script = "tty; echo err >&2; read line; exit 4"
    streams = ("stdin", "stdout", "stderr")
    with execs.running(script, streams=streams, terminal=True) as run, opened(run.reader()) as stdout:
        seen = b""
        while b"err\r\n" not in seen:
            seen += read_some(stdout)
        assert b"/dev/pts/" in seen
        with pytest.raises(OSError) as raised:
            os.open(run.paths["stderr"], os.O_WRONLY | os.O_NONBLOCK)
        assert raised.value.errno == errno.ENXIO, "nobody reads it"
        with opened(run.reader("stderr")) as stderr:
            poll = select.poll()
            poll.register(stderr, select.POLLIN)
            assert poll.poll(0) == [], "and nobody has written: that would be a hang-up"
        with opened(run.writer()) as stdin:
            os.write(stdin, b"go\n")
        read_all(stdout)
        assert run.wait() == 4


# -- a start that fails ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "cwd", "named"),
    [
        pytest.param(("/no/such/program",), "/", "/no/such/program", marks=pytest.mark.short),
        (("true",), "/no/such/directory", "/no/such/directory"),
        ((), "/", "args"),
    ],
)
def test_an_exec_that_cannot_start_closes_its_fifos_and_was_never_there(
    ctr: Ctr, execs: Execs, argv: tuple[str, ...], cwd: str, named: str
) -> None:
    with recorded(ctr) as events, ExitStack() as stack:
        run = execs.new(*argv, cwd=cwd, streams=("stdin", "stdout", "stderr"))
        outputs = [stack.enter_context(opened(run.reader(name))) for name in ("stdout", "stderr")]
        answer = run.call("Start")
        assert answer.code
        assert named in answer.message
        if execs.vm:
            assert answer.code in (NOT_FOUND, INVALID_ARGUMENT), answer
        for fd in outputs:
            assert read_all(fd, timeout=5) == b""
        if execs.vm:
            with pytest.raises(OSError) as raised:
                deadline = time.monotonic() + 5
                while time.monotonic() < deadline:
                    os.close(run.writer())
                    time.sleep(0.05)
            assert raised.value.errno == errno.ENXIO, "nobody reads stdin any more"
        started = time.monotonic()
        assert run.call("Delete").code == 0
        assert time.monotonic() - started < 1
        run.close()
        again = execs.new("echo", "next")
        with opened(again.reader()) as stdout:
            again.start()
            assert read_all(stdout) == b"next\n"
        assert again.finish() == 0
        events.wait_for("/tasks/exit", again.ids["f1"], again.ids["f2"])
    ended = [fields["id"] for topic, fields in events.of(run.ids["f1"]) if topic == "/tasks/exit"]
    assert again.ids["f2"] in ended
    assert run.ids["f2"] not in ended


# -- many --------------------------------------------------------------------------------------------------------


def test_thirty_streams_at_once_do_not_mix(execs: Execs) -> None:
    """Fifteen processes send back what they get, each something of its own."""

    def turn(number: int) -> bool:
        sent = PAYLOAD[number << 17 : (number << 17) + (1 << 20)]
        with execs.running("cat", streams=("stdin", "stdout")) as run, opened(run.reader()) as stdout:
            writing = threading.Thread(target=send, args=(run, sent))
            writing.start()
            got = read_all(stdout)
            writing.join()
            return run.wait() == 0 and digest(got) == digest(sent)

    with ThreadPoolExecutor(15) as pool:
        assert list(pool.map(turn, range(15))) == [True] * 15


def send(run: Exec, data: bytes) -> None:
    with opened(run.writer()) as stdin:
        left = memoryview(data)
        while left:
            left = left[os.write(stdin, left) :]
    run.close_stdin()
