"""stdio by the agent's RPCs, where no stream may be passed: the same bytes, more slowly."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from integration.conftest import PAYLOAD, PAYLOAD_HASH, assert_whole
from integration.ctr import Ctr

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def box(ctr: Ctr) -> Iterator[str]:
    """A sandbox without passed streams. Its own exit and output are looked at when it is removed."""
    container = ctr.new_id()
    ctr.daemon.set_for_shims('use_passfd_io = false\ntemplate = "off"\n')
    try:
        ctr(*ctr.run_args(container, "sleep", "100000", options=["-d", "--null-io"])).ok()
    finally:
        ctr.daemon.set_for_shims("")
    yield container
    ctr.remove(container)


def test_nothing_is_passed(ctr: Ctr, box: str) -> None:
    assert "passfd_listener_port" not in ctr.exec(box, "cat", "/proc/cmdline").ok().text


def test_a_burst_and_the_exit_right_behind_it(ctr: Ctr, box: str) -> None:
    offset = ctr.daemon.log_size()
    for _ in range(3):
        assert_whole(ctr.exec(box, "cat", "/payload").ok().out)
    assert ctr.daemon.log_since(offset).count(f"code=0 stdin=0 stdout={len(PAYLOAD)} stderr=0 ") == 3


def test_input_comes_back_unchanged_and_ends(ctr: Ctr, box: str) -> None:
    data = os.urandom(2 << 20)
    child = ctr.spawn(*ctr.exec_args(box, "sh", "-c", "echo; cat; echo >&2 end"), stdin=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"\n"
    out, err = child.communicate(data, timeout=120)
    assert hashlib.sha256(out).digest() == hashlib.sha256(data).digest(), len(out)
    assert err == b"end\n"
    assert child.returncode == 0


def test_a_slow_process_gets_all_of_its_input(ctr: Ctr, box: str) -> None:
    shell = "echo; sleep 2; sha256sum"
    child = ctr.spawn(*ctr.exec_args(box, "sh", "-c", shell), stdin=subprocess.PIPE)
    assert child.stdout and child.stdout.readline() == b"\n"
    out, _ = child.communicate(PAYLOAD, timeout=120)
    assert out.split()[0].decode() == PAYLOAD_HASH


def test_a_slow_reader_gets_every_byte_and_stops_nobody(ctr: Ctr, box: str) -> None:
    child = ctr.spawn(*ctr.exec_args(box, "cat", "/payload"))
    assert ctr.exec(box, "echo", "other").ok().text == "other\n"
    out, _ = child.communicate(timeout=120)
    assert_whole(out)


def test_both_outputs_and_the_exit_status_are_told(ctr: Ctr, box: str) -> None:
    done = ctr.exec(box, "sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.code, done.out, done.err.strip()) == (5, b"out\n", "err")


def test_a_child_that_keeps_the_output_does_not_keep_the_client(ctr: Ctr, box: str) -> None:
    done = ctr.exec(box, "sh", "-c", "sleep 60 & echo started", timeout=30).ok()
    assert done.text == "started\n"


def test_a_terminal_has_a_size_and_echoes(ctr: Ctr, box: str) -> None:
    terminal = ctr.terminal(*ctr.exec_args(box, "sh", options=["-t"]), rows=31, columns=97)
    terminal.write(b"stty size; exit 4\r")
    terminal.until(b"31 97")
    assert terminal.finish() == 4


def test_an_agent_that_takes_no_streams_gets_its_containers_stdio_by_rpc(ctr: Ctr) -> None:
    """Found out at the first stream. An init process' streams begin with its start, with the input from before."""
    ctr.daemon.set_for_shims('kernel_params = ["agent.passfd_listener_port=0"]\ntemplate = "off"\n')
    offset = ctr.daemon.log_size()
    try:
        done = ctr.run("sh", "-c", "cat /payload; cat >&2; exit 3", stdin=b"all of the input")
    finally:
        ctr.daemon.set_for_shims("")
    assert_whole(done.out)
    assert (done.code, done.err) == (3, "all of the input")
    assert ctr.daemon.log_since(offset).count("streams cannot be passed to the guest") == 1
