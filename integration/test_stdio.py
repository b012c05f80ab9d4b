"""Every byte, whatever the speed of either side; hashes of what went through."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import termios
import time
from typing import IO

import pytest

from integration import process
from integration.conftest import OURS, PAYLOAD, PAYLOAD_HASH, assert_whole
from integration.ctr import Ctr
from integration.sandbox import members
from integration.until import until

MIB = 1 << 20
PIPE = 64 << 10


def test_a_burst_and_removal_right_after_it_twenty_runs_in_a_row(ctr: Ctr) -> None:
    """ctr deletes the task as soon as Wait answers; what is not in the FIFO by then is lost."""
    for _ in range(20):
        done = ctr.run("cat", "/payload").ok()
        assert_whole(done.out)


@pytest.mark.short
def test_twenty_mib_through_cat_come_back_unchanged(ctr: Ctr, box: str) -> None:
    data = os.urandom(20 * MIB)
    child = ctr.spawn(*ctr.exec_args(box, "sh", "-c", "echo; cat"), stdin=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"\n"
    out, err = child.communicate(data, timeout=120)
    assert len(out) == len(data), err
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest()
    assert child.returncode == 0


@pytest.mark.short
def test_a_stalled_reader_loses_nothing_burns_no_cpu_and_stalls_nobody_else(ctr: Ctr, box: str) -> None:
    child = ctr.spawn(*ctr.exec_args(box, "cat", "/payload"))
    pipe = child.stdout
    assert pipe
    until("nothing more goes into ctr's pipe", lambda: filled(pipe) >= PIPE)
    time.sleep(1)  # nor into what is before it
    watched = [item for item in members(ctr, box).values() if item.role in ("shim", "device", "virtiofsd")]
    time.sleep(5)
    if ctr.runtime == OURS:
        assert {item.role for item in watched} == {"shim", "device", "virtiofsd"}
        for old in watched:
            new = process.read(old.pid)
            assert new is not None
            used_s = new.cpu_s - old.cpu_s
            assert used_s < 0.25, f"{old.role}: {used_s} s of CPU in 5 s of waiting"
    for _ in range(6):
        asked = time.monotonic()
        assert ctr.exec(box, "echo", "other").ok().text == "other\n"
        assert time.monotonic() - asked < 5
        time.sleep(0.5)
    assert filled(pipe) == PIPE, "and it still stood"
    out, _ = child.communicate(timeout=60)
    assert_whole(out)
    assert child.returncode == 0


def filled(pipe: IO[bytes]) -> int:
    """How many bytes wait in it."""
    answer = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return int.from_bytes(answer, sys.byteorder)


def test_a_client_that_stops_and_goes_on_gets_every_byte(ctr: Ctr, box: str) -> None:
    child = ctr.spawn(*ctr.exec_args(box, "cat", "/payload"))
    assert child.stdout
    hasher, total = hashlib.sha256(), 0
    for _ in range(4):
        child.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        child.send_signal(signal.SIGCONT)
        chunk = child.stdout.read(MIB)
        hasher.update(chunk)
        total += len(chunk)
    rest, _ = child.communicate(timeout=60)
    hasher.update(rest)
    assert hasher.hexdigest() == PAYLOAD_HASH, total + len(rest)


@pytest.mark.short
@pytest.mark.vm
def test_a_client_that_reads_slowly_gets_the_end_too(ctr: Ctr, box: str) -> None:
    """ctr lets go of its streams when it has heard of the exit; with runc's shim it loses what is in the FIFO then."""
    child = ctr.spawn(*ctr.exec_args(box, "head", "-c", str(2 * MIB), "/payload"))
    assert child.stdout
    out = b""
    while piece := child.stdout.read(64 << 10):
        out += piece
        time.sleep(0.05)
    assert out == PAYLOAD[: 2 * MIB], f"{len(out)} bytes"
    assert child.wait(30) == 0


def test_slow_input_is_passed_on_as_it_comes(ctr: Ctr, box: str) -> None:
    child = ctr.spawn(*ctr.exec_args(box, "cat"), stdin=subprocess.PIPE)
    assert child.stdin and child.stdout
    for word in (b"a\n", b"bb\n", b"ccc\n"):
        child.stdin.write(word)
        child.stdin.flush()
        assert child.stdout.readline() == word
    child.stdin.close()
    assert child.wait(30) == 0


@pytest.mark.vm
def test_the_log_says_at_the_exit_what_went_through(ctr: Ctr, box: str) -> None:
    offset = ctr.daemon.log_size()
    ctr.exec(box, "sh", "-c", "cat /payload; echo five >&2; exit 3")
    (line,) = [line for line in ctr.daemon.log_since(offset).splitlines() if "process has ended" in line]
    assert f"code=3 stdin=0 stdout={len(PAYLOAD)} stderr=5 stalls=" in line
    assert "drained=True" in line


@pytest.mark.vm
def test_the_shim_s_cpu_does_not_move_while_a_container_prints(ctr: Ctr, box: str) -> None:
    """128 MiB here; hack/bench/stdio measures a whole GiB."""
    shim = next(item for item in members(ctr, box).values() if item.role == "shim")
    with open(os.devnull, "wb") as nowhere:
        child = ctr.spawn(
            *ctr.exec_args(box, "sh", "-c", "for i in $(seq 16); do cat /payload; done"), stdout=nowhere
        )
        time.sleep(1.5)  # past what starting an exec costs
        before = process.read(shim.pid)
        assert child.poll() is None, "the stream ended before it could be measured"
        child.wait(120)
        after = process.read(shim.pid)
    assert before and after
    assert after.cpu_s - before.cpu_s < 0.1
