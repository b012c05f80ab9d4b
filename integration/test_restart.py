"""containerd ends and comes back while containers run."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from integration import process
from integration.ctr import Ctr
from integration.sandbox import members, wait_gone
from integration.until import until


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


@pytest.mark.short
@pytest.mark.vm
def test_what_ends_meanwhile_keeps_its_status_and_is_told_once_and_in_order(ctr: Ctr) -> None:
    """containerd's log says at level trace which events it gets. runc's shim gives up telling after some tries."""
    container = ctr.detached("sh", "-c", "sleep 2; exit 6", options=["--null-io"])
    ctr("task", "exec", "--exec-id", "long", "-d", container, "sleep", "1000").ok()
    (shim,) = [item for item in members(ctr, container).values() if item.role == "shim"]
    ctr.daemon.stop()
    time.sleep(3)
    assert process.alive([shim])
    offset = ctr.daemon.log_size()
    with ctr.daemon.tracing():
        ctr.daemon.start()
        until("the task is stopped", lambda: ctr.tasks()[container][1] == "STOPPED")
        assert "exit code 6" in ctr("task", "rm", container).err
        told = [line for line in ctr.daemon.log_since(offset).splitlines() if '"event forwarded"' in line]
        assert [re.findall(r"topic=(\S+)", line)[0] for line in told] == [
            "/tasks/exit",
            "/tasks/exit",
            "/tasks/delete",
        ]


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


@pytest.mark.once
@pytest.mark.vm
def test_what_nobody_cleans_up_is_found_and_removed(ctr: Ctr, tmp_path: Path) -> None:
    """A shim is killed while containerd is away; its logger does not end."""
    program = tmp_path / "logger"
    program.write_text(f"#!/bin/sh\n# of {ctr.daemon.root}\nexec 5>&-\nexec sleep 1000\n")
    program.chmod(0o755)

    def gc(*words: str) -> subprocess.CompletedProcess[str]:
        command = [str(ctr.daemon.shims / "kata-py"), "gc", "-n", ctr.daemon.namespace, *words]
        return subprocess.run(command, env=ctr.daemon.env, capture_output=True, text=True, check=False)

    container = ctr.detached("sleep", "1000", options=["--log-uri", f"binary://{program}"])
    everyone = members(ctr, container)
    (shim,) = [item for item in everyone.values() if item.role == "shim"]
    (logger,) = [item for item in everyone.values() if "sleep 1000" in item.command]
    for done in (gc(), gc("--remove")):
        assert done.returncode == 0, f"it is in use: {done}"
    ctr.daemon.stop()
    for done in (gc(), gc("--remove")):
        assert done.returncode == 0, f"and still is: {done}"
    os.kill(shim.pid, signal.SIGKILL)
    wait_gone([item for item in everyone.values() if item is not logger], timeout=10)
    listed = gc("--json")
    assert listed.returncode == 1, listed.stderr
    (found,) = json.loads(listed.stdout)
    assert found["of"] == f"{ctr.daemon.namespace}/{container}"
    things = {item["what"]: item["which"] for item in found["left"]}
    assert things.keys() == {"process", "cgroup", "socket", "directory"}
    assert things["process"] == f"{logger.pid} logger" and process.alive([logger])
    removed = gc("--remove")
    assert removed.returncode == 0, removed.stderr
    assert not process.alive([logger])
    assert not any(os.path.lexists(things[what]) for what in ("cgroup", "socket", "directory"))
    ctr.daemon.start()
    until("the task is gone", lambda: container not in ctr.tasks())
    ctr("container", "rm", container).ok()
    assert ctr.run("echo", "again", container=container).ok().text == "again\n"
