"""`ctr task exec` in a running container."""

from __future__ import annotations

import hashlib
import subprocess
import time

import pytest

from integration.conftest import PAYLOAD_HASH, assert_whole
from integration.ctr import Ctr


@pytest.mark.short
def test_exec_s_output_and_errors_arrive(ctr: Ctr, box: str) -> None:
    done = ctr.exec(box, "sh", "-c", "echo out; echo err >&2").ok()
    assert (done.out, done.err) == (b"out\n", "err\n")


@pytest.mark.short
def test_exec_on_a_terminal(ctr: Ctr, box: str) -> None:
    shell = "until [ \"$(stty size)\" = '20 50' ]; do sleep 0.1; done; tty; read line; echo got $line; exit 3"
    terminal = ctr.terminal(*ctr.exec_args(box, "sh", "-c", shell, options=["-t"]), rows=20, columns=50)
    terminal.until(b"pts/")
    terminal.write(b"typed\r")
    terminal.until(b"got typed\r")
    assert terminal.finish() == 3


@pytest.mark.short
def test_exec_reads_its_stdin_to_the_end(ctr: Ctr, box: str) -> None:
    child = ctr.spawn(*ctr.exec_args(box, "sh", "-c", "echo ready; wc"), stdin=subprocess.PIPE)
    assert child.stdin and child.stdout
    assert child.stdout.readline() == b"ready\n"
    out, _ = child.communicate(b"aaa\nbbb\nccc\n", timeout=60)
    assert out.split() == [b"3", b"3", b"12"]
    assert child.returncode == 0


def test_exec_takes_stdin_that_is_there_before_it(ctr: Ctr, box: str) -> None:
    for number in range(10):
        text = f"line {number}\n".encode()
        assert ctr.exec(box, "cat", stdin=text).ok().out == text


@pytest.mark.parametrize("code", [0, 1, 77, 137])
def test_exec_s_exit_status_is_the_command_s(ctr: Ctr, box: str, code: int) -> None:
    assert ctr.exec(box, "sh", "-c", f"exit {code}").code == code


def test_exec_killed_by_a_signal_gives_128_and_its_number(ctr: Ctr, box: str) -> None:
    assert ctr.exec(box, "sh", "-c", "kill -TERM $$").code == 143


@pytest.mark.short
def test_exec_of_a_missing_program_is_a_clear_error_and_the_container_goes_on(ctr: Ctr, box: str) -> None:
    done = ctr.exec(box, "/no/such/program")
    assert done.code != 0
    assert "/no/such/program" in done.err
    assert ctr.exec(box, "echo", "alive").ok().text == "alive\n"


def test_exec_has_its_directory_and_user(ctr: Ctr, box: str) -> None:
    done = ctr.exec(
        box, "sh", "-c", "pwd; id -u; id -g", options=["--cwd", "/var/log", "--user", "1000:1000"]
    )
    assert done.ok().text.split() == ["/var/log", "1000", "1000"]


def test_an_exec_id_can_be_used_again(ctr: Ctr, box: str) -> None:
    for word in ("first", "second"):
        done = ctr("task", "exec", "--exec-id", "same", box, "echo", word).ok()
        assert done.text == f"{word}\n"


def test_an_exec_id_in_use_is_refused(ctr: Ctr, box: str) -> None:
    child = ctr.spawn("task", "exec", "--exec-id", "same", box, "sh", "-c", "echo ready; sleep 3")
    assert child.stdout and child.stdout.readline() == b"ready\n"
    done = ctr("task", "exec", "--exec-id", "same", box, "true")
    assert done.code != 0
    assert "already exists" in done.err
    child.communicate(timeout=30)
    assert child.returncode == 0


def test_exec_in_a_container_that_is_not_there_is_refused(ctr: Ctr) -> None:
    assert "not found" in ctr.exec("nobody", "true").err


def test_many_execs_at_once(ctr: Ctr, box: str) -> None:
    children = [ctr.spawn(*ctr.exec_args(box, "sh", "-c", f"echo {n}; exit {n}")) for n in range(16)]
    for number, child in enumerate(children):
        out, err = child.communicate(timeout=60)
        assert (out, child.returncode) == (f"{number}\n".encode(), number), err


@pytest.mark.once
@pytest.mark.vm
def test_a_child_that_keeps_stdout_does_not_keep_the_exec(ctr: Ctr, box: str) -> None:
    """With runc ctr waits as long as the child holds the pipe; a bounded grace is ours."""
    started = time.monotonic()
    done = ctr.exec(box, "sh", "-c", "sleep 45 & echo done").ok()
    assert done.text == "done\n"
    assert time.monotonic() - started < 30


@pytest.mark.short
def test_a_burst_before_the_exit_arrives_whole_twenty_times(ctr: Ctr, box: str) -> None:
    for _ in range(20):
        done = ctr.exec(box, "cat", "/payload").ok()
        assert_whole(done.out)


def test_a_burst_on_both_streams_arrives_whole(ctr: Ctr, box: str) -> None:
    child = ctr.spawn(*ctr.exec_args(box, "sh", "-c", "cat /payload >&2 & cat /payload; wait"))
    out, err = child.communicate(timeout=60)
    assert [hashlib.sha256(data).hexdigest() for data in (out, err)] == [PAYLOAD_HASH] * 2
