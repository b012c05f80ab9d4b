"""Which sandbox a word means, and what is known of sandboxes whose shims live, hang or are dead."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from shim.cli import sandboxes
from shim.errors import InvalidArgument, NotFound
from shim.introspect.usage import Usage

from .conftest import Tool


def test_there_may_be_none(tool: Tool) -> None:
    assert sandboxes.records() == []
    os.makedirs(tool.folder / "run/ns/starting")  # by a `start` that has not finished
    assert sandboxes.records() == []


def test_what_is_no_directory_is_no_sandbox(tool: Tool) -> None:
    record = tool.record("c1")
    (tool.folder / "run/file").touch()
    (tool.folder / "run/ns/file").touch()
    (tool.folder / "run/ns/link").symlink_to(record.run_dir)
    assert sandboxes.run_dirs() == [record.run_dir]


def test_a_word_is_an_id_a_container_or_a_beginning(tool: Tool) -> None:
    tool.record("abc1").set_container("web", 1)
    tool.record("abd1")
    tool.record("abc")
    tool.record("abd1", "other")
    for word, namespace, found in (
        ("abc1", None, ("ns", "abc1")),
        ("abc", None, ("ns", "abc")),
        ("web", None, ("ns", "abc1")),
        ("abd", "other", ("other", "abd1")),
    ):
        record = sandboxes.pick(word, namespace)
        assert (record.namespace, record.sandbox_id) == found
    with pytest.raises(InvalidArgument, match="'abd1' could be ns/abd1, other/abd1: say more of it, or"):
        sandboxes.pick("abd1", None)
    for word, namespace in (("", None), ("x", None), ("web", "other"), ("../ns/abc", None)):
        with pytest.raises(NotFound, match="there is none"):
            sandboxes.pick(word, namespace)


def test_a_live_shim_tells_everything(tool: Tool) -> None:
    record = tool.record()
    with tool.live():
        (found,) = sandboxes.look([record], usage=True)
    assert found.state == "up" and found.problem == "" and found.live is not None
    assert found.usage == {"c1": Usage(1.5, 4096, 3)}, "c2 does not run yet"
    (member,) = found.members
    assert (member.role, member.pid) == ("daemon", os.getpid()) and member.memory > 1 << 20
    assert found.memory == member.memory and found.pid("daemon") == os.getpid() and found.pid("x") == 0


def test_the_dead_the_hung_and_the_foreign_are_told_and_cost_no_time(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandboxes, "TIMEOUT_S", 2.0)
    dead, hung, gone, live = tool.dead("dead"), tool.record("hung"), tool.record("gone"), tool.record("live")
    with socket.socket(socket.AF_UNIX) as listener, tool.live("live"):
        listener.bind(str(tool.folder / "hung.sock"))
        listener.listen()
        began = time.monotonic()
        found = {item.record.sandbox_id: item for item in sandboxes.look([dead, hung, gone, live])}
        assert time.monotonic() - began < 10
    assert [found[name].state for name in ("dead", "hung", "gone", "live")] == [
        "no shim",
        "silent",
        "silent",
        "up",
    ]
    assert found["dead"].problem.endswith("is dead") and found["dead"].members == []
    assert "does not answer: " in found["hung"].problem and "no answer within 2 s" in found["hung"].problem
    assert "No such file" in found["gone"].problem and found["live"].problem == ""
    assert found["hung"].pid("daemon") == os.getpid()


def test_a_record_that_makes_no_sense_hides_nobody(tool: Tool) -> None:
    broken = tool.record("broken")
    tool.record("whole")
    Path(broken.run_dir, "record.json").write_text("{}")
    found = sandboxes.look(sandboxes.records())
    assert [(item.record.sandbox_id, item.state) for item in found] == [
        ("broken", "no shim"),
        ("whole", "silent"),
    ]
    assert found[0].problem == f"{broken.run_dir}/record.json names no shim"


def test_a_pid_that_was_given_to_somebody_else_is_nobody(tool: Tool, tmp_path: Path) -> None:
    record = tool.record()
    record.processes[0].start_time += 1
    (found,) = sandboxes.look([record])
    assert found.state == "no shim" and found.members == []
