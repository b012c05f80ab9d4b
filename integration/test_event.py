"""containerd's events: all of them, once, in order."""

from __future__ import annotations

import pytest

from integration.ctr import Ctr
from integration.events import recorded
from integration.sandbox import members
from integration.until import until


def test_events_of_a_run_come_once_and_in_order(ctr: Ctr) -> None:
    with recorded(ctr) as events:
        container = ctr.new_id()
        assert ctr.run("sh", "-c", "exit 3", container=container).code == 3
        events.wait_for("/tasks/delete", container)
    ours = events.of(container)
    assert [topic for topic, _ in ours] == ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]
    create, start, ended, deleted = (fields for _, fields in ours)
    pid = create["pid"]
    assert isinstance(pid, int) and pid > 1
    assert start["pid"] == ended["pid"] == deleted["pid"] == pid
    assert ended["id"] == container
    assert ended["exit_status"] == deleted["exit_status"] == 3
    assert "bundle" in create


@pytest.mark.short
def test_events_of_an_exec_lie_within_its_container_s(ctr: Ctr) -> None:
    with recorded(ctr) as events:
        container = ctr.detached("sleep", "1000", options=["--null-io"])
        assert ctr("task", "exec", "--exec-id", "inner", container, "sh", "-c", "exit 4").code == 4
        ctr("task", "exec", "--exec-id", "long", "-d", container, "sleep", "1000").ok()
        ctr("task", "rm", "-f", container).ok()
        events.wait_for("/tasks/delete", container)
    ours = events.of(container)
    topics = [topic for topic, _ in ours]
    assert topics[:5] == [
        "/tasks/create",
        "/tasks/start",
        "/tasks/exec-added",
        "/tasks/exec-started",
        "/tasks/exit",
    ]
    assert (ours[4][1]["id"], ours[4][1]["exit_status"]) == ("inner", 4)
    assert topics[5:7] == ["/tasks/exec-added", "/tasks/exec-started"]
    assert topics[-1] == "/tasks/delete"
    exits = [fields["id"] for topic, fields in ours if topic == "/tasks/exit"]
    assert sorted(map(str, exits)) == sorted(["inner", "long", container])
    if ctr.daemon.version != "1.6" or "runc" not in ctr.runtime:
        assert exits[-1] == container, "the exit of the container comes after those of its execs"


def test_a_failed_start_has_no_exit_event(ctr: Ctr) -> None:
    with recorded(ctr) as events:
        container = ctr.new_id()
        assert ctr.run("/no/such/program", container=container).code != 0
        until("its shim has told all and ended", lambda: not members(ctr, container))
    topics = [topic for topic, _ in events.of(container)]
    assert "/tasks/start" not in topics
    assert "/tasks/exit" not in topics or "runc" in ctr.runtime
