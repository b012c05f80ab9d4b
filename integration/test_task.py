"""`ctr task ...` on a detached container: list, attach, signals, removal, and the answers to misuse."""

from __future__ import annotations

import time

import pytest

from integration.ctr import Ctr
from integration.exec import shim_service
from integration.ttrpc import Task
from integration.until import until


@pytest.mark.short
def test_a_detached_container_runs_and_is_listed(ctr: Ctr) -> None:
    container = ctr.detached("sleep", "1000", options=["--null-io"])
    pid, status = ctr.tasks()[container]
    assert status == "RUNNING"
    assert pid > 1
    assert str(pid) in ctr("task", "ps", container).ok().text


@pytest.mark.short
def test_a_term_signal_ends_it_with_143(ctr: Ctr) -> None:
    shell = "trap 'exit 143' TERM; echo ready; while :; do sleep 0.1; done"
    child = ctr.spawn(*ctr.run_args(container := ctr.new_id(), "sh", "-c", shell, options=["--rm"]))
    assert child.stdout and child.stdout.readline() == b"ready\n"
    ctr("task", "kill", "-s", "SIGTERM", container).ok()
    child.communicate(timeout=30)
    assert child.returncode == 143


def test_a_program_that_does_not_handle_the_signal_is_ended_by_kill_with_137(ctr: Ctr) -> None:
    child = ctr.spawn(
        *ctr.run_args(container := ctr.new_id(), "sh", "-c", "echo ready; sleep 1000", options=["--rm"])
    )
    assert child.stdout and child.stdout.readline() == b"ready\n"
    ctr("task", "kill", "-s", "SIGKILL", container).ok()
    child.communicate(timeout=30)
    assert child.returncode == 137


@pytest.mark.short
def test_attach_after_detach_goes_on_with_the_same_streams(ctr: Ctr) -> None:
    shell = "while read line; do echo got $line; [ $line = end ] && exit 9; done"
    container = ctr.new_id()
    first = ctr.terminal(*ctr.run_args(container, "sh", "-c", shell, options=["-d", "-t"]))
    assert first.finish() == 0
    second = ctr.terminal("task", "attach", container)
    second.write(b"one\r")
    second.until(b"got one\r")
    second.abandon()
    third = ctr.terminal("task", "attach", container)
    third.write(b"two\r")
    third.until(b"got two\r")
    third.write(b"end\r")
    third.until(b"got end\r")
    assert third.finish() == 9


def test_what_is_written_while_nobody_reads_is_there_at_attach(ctr: Ctr) -> None:
    container = ctr.new_id()
    shell = "sleep 1; echo unread; read line; echo read $line"
    ctr(*ctr.run_args(container, "sh", "-c", shell, options=["-d"])).ok()
    time.sleep(2)
    child = ctr.spawn("task", "attach", container, stdin=-1)
    out, _ = child.communicate(b"it\n", timeout=30)
    assert out == b"unread\nread it\n"
    assert child.returncode == 0


@pytest.mark.short
def test_force_removal_of_a_running_task_and_then_of_its_container(ctr: Ctr) -> None:
    container = ctr.detached("sleep", "1000", options=["--null-io"])
    refused = ctr("container", "rm", container)
    assert refused.code != 0
    ctr("task", "rm", "-f", container).ok()
    assert container not in ctr.tasks()
    ctr("container", "rm", container).ok()
    assert container not in ctr.containers()


def test_a_stopped_task_keeps_its_status_until_it_is_removed(ctr: Ctr) -> None:
    container = ctr.detached("sh", "-c", "exit 7", options=["--null-io"])
    until("the task is stopped", lambda: ctr.tasks()[container][1] == "STOPPED")
    assert "exit code 7" in ctr("task", "rm", container).err
    assert container not in ctr.tasks()


def test_misuse_is_answered_with_the_right_status(ctr: Ctr) -> None:
    """The codes are gRPC's: 0 is fine, 5 not found, 12 unimplemented."""
    container = ctr.detached("sleep", "1000", options=["--null-io"])
    with Task(ctr.daemon.shim_address(container), service=shim_service(ctr)) as task:
        state = task.call("State", f1=container)
        assert (state.code, state.fields[4]) == (0, 2)
        assert task.call("State", f1="nobody").code == 5
        assert task.call("State", f1=container, f2="nobody").code == 5
        assert task.call("Wait", f1="nobody").code == 5
        assert task.call("Kill", f1=container, f2="nobody", f3=9).code == 5
        assert task.call("Start", f1=container).code != 0
        assert task.call("Delete", f1=container).code != 0
        assert task.call("Create", f1=container, f2=str(ctr.daemon.bundles / container)).code != 0
        assert task.call("CloseIO", f1=container, f3=1).code == 0
        assert task.call("ResizePty", f1=container, f3=80, f4=24).code == 0
        assert task.call("Shutdown", f1=container).code == 0
        assert task.call("State", f1=container).fields[4] == 2
        assert task.call("Connect", f1=container).fields[1]
        assert task.call("NoSuchMethod", f1=container).code == 12
        assert task.call("Pids", f1=container).fields[1]


@pytest.mark.vm
def test_both_versions_of_the_task_service_answer(ctr: Ctr) -> None:
    container = ctr.detached("sleep", "1000", options=["--null-io"])
    for version in ("v2", "v3"):
        with Task(ctr.daemon.shim_address(container), service=f"containerd.task.{version}.Task") as task:
            assert task.call("State", f1=container).fields[4] == 2
