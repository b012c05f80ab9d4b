"""containerd ends and comes back while containers run."""

from __future__ import annotations

import os
import signal

import pytest

from integration.ctr import Ctr
from integration.sandbox import members, wait_gone
from integration.test_task import until


@pytest.mark.short
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "killed"])
def test_a_container_lives_on_over_a_restart_of_containerd(ctr: Ctr, kill: bool) -> None:
    container = ctr.detached("sleep", "1000", options=["--null-io"])
    before = {item.pid for item in members(ctr, container).values()}
    ctr.daemon.stop(kill=kill)
    assert {item.pid for item in members(ctr, container).values()} == before
    ctr.daemon.start()
    assert ctr.tasks()[container][1] == "RUNNING"
    assert ctr.exec(container, "echo", "still here").ok().text == "still here\n"
    ctr("task", "kill", "-s", "SIGKILL", container).ok()
    until("the task is stopped", lambda: ctr.tasks()[container][1] == "STOPPED")
    assert "exit code 137" in ctr("task", "rm", container).err


@pytest.mark.vm
def test_a_container_that_ends_meanwhile_keeps_its_status(ctr: Ctr) -> None:
    container = ctr.detached("sh", "-c", "sleep 3; exit 6", options=["--null-io"])
    ctr.daemon.stop()
    ctr.daemon.start()
    until("the task is stopped", lambda: ctr.tasks()[container][1] == "STOPPED")
    assert "exit code 6" in ctr("task", "rm", container).err


@pytest.mark.short
@pytest.mark.vm
def test_a_shim_killed_meanwhile_is_cleaned_up_at_the_restart(ctr: Ctr) -> None:
    """runc's shim leaves its socket file behind in this case, so it would not pass."""
    container = ctr.detached("sleep", "1000", options=["--null-io"])
    everyone = members(ctr, container)
    ctr.daemon.stop()
    shim = next(item for item in everyone.values() if item.role == "shim")
    os.kill(shim.pid, signal.SIGKILL)
    ctr.daemon.start()
    wait_gone(everyone.values(), timeout=10)
    until("the task is gone", lambda: container not in ctr.tasks())
