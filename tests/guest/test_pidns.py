"""The holder of a shared pid namespace: a real one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import errors
from shim.guest import pidns, syscall

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a namespace")


@pytest.fixture
def holder(subreaper: None) -> Iterator[int]:
    pid = int(pidns.hold().split("/")[2])
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_it_is_the_first_process_of_another_namespace(holder: int) -> None:
    assert os.readlink(f"/proc/{holder}/ns/pid") != os.readlink("/proc/self/ns/pid")
    status = Path(f"/proc/{holder}/status").read_text()
    (numbers,) = (line.split() for line in status.splitlines() if line.startswith("NSpid:"))
    assert numbers[-1] == "1"


def test_our_own_children_stay_where_we_are(holder: int) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, os.readlink("/proc/self/ns/pid").encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with open(reader) as pipe:
        assert pipe.read() == os.readlink("/proc/self/ns/pid")


def test_it_keeps_no_descriptor_of_ours(holder: int) -> None:
    assert os.listdir(f"/proc/{holder}/fd") == []


def test_a_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_flags: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(syscall, "unshare", refuse)
    with pytest.raises(errors.Internal, match="pid namespace"):
        pidns.hold()
