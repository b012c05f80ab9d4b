"""Any process of a sandbox may be killed at any time: the task ends at once and nothing stays behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from integration import leak, process
from integration.ctr import Ctr
from integration.sandbox import members, wait_gone
from integration.until import until


def started(ctr: Ctr) -> tuple[str, object]:
    """A container in the foreground that runs, and its ctr."""
    container = ctr.new_id()
    child = ctr.spawn(*ctr.run_args(container, "sh", "-c", "echo ready; sleep 1000", options=[]))
    assert child.stdout and child.stdout.readline() == b"ready\n"
    return container, child


@pytest.mark.short
def test_a_killed_shim_takes_its_sandbox_along(ctr: Ctr) -> None:
    container = ctr.detached("sleep", "1000", options=["--null-io"])
    everyone = members(ctr, container)
    shim = next(item for item in everyone.values() if item.role == "shim")
    os.kill(shim.pid, signal.SIGKILL)
    wait_gone(everyone.values(), timeout=8)
    # The task is out of the list as soon as its shim does not answer; containerd's `delete` takes longer.
    until("the bundle is gone", lambda: not (ctr.daemon.bundles / container).exists())
    assert container not in ctr.tasks()
    ctr("container", "rm", container).ok()
    assert ctr.run("echo", "again", container=container).ok().text == "again\n"


@pytest.mark.vm
@pytest.mark.parametrize("role", [pytest.param("qemu", marks=pytest.mark.short), "device", "virtiofsd"])
def test_a_killed_part_of_the_vm_ends_the_task_at_once(ctr: Ctr, role: str) -> None:
    container, child = started(ctr)
    everyone = members(ctr, container)
    victims = [item for item in everyone.values() if item.role == role]
    assert victims, everyone
    killed = time.monotonic()
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    child.communicate(timeout=20)  # type: ignore[attr-defined]
    assert time.monotonic() - killed < 5
    assert child.returncode in (137, 255)  # type: ignore[attr-defined]
    assert ctr.exec(container, "true").code != 0
    ctr("task", "rm", container)
    assert container not in ctr.tasks()
    wait_gone(everyone.values(), timeout=8)


@pytest.mark.vm
def test_a_vm_killed_while_it_boots_fails_the_run(ctr: Ctr) -> None:
    container = ctr.new_id()
    ctr.daemon.set_for_shims('template = "off"\n')  # one from a template is up before we could kill it
    try:
        child = ctr.spawn(*ctr.run_args(container, "true", options=["--rm"]))
        until("qemu runs", lambda: any(item.role == "qemu" for item in members(ctr, container).values()))
    finally:
        ctr.daemon.set_for_shims("")
    time.sleep(0.5)
    for item in members(ctr, container).values():
        if item.role == "qemu":
            os.kill(item.pid, signal.SIGKILL)
    _, err = child.communicate(timeout=20)
    assert child.returncode != 0
    assert err


@pytest.mark.vm
def test_a_guest_that_powers_off_ends_the_task(ctr: Ctr) -> None:
    """The kernel of a container's own VM is the container's to break; the host only notes that it ended."""
    container, child = started(ctr)
    everyone = members(ctr, container)
    (qemu,) = [item for item in everyone.values() if item.role == "qemu"]
    os.kill(qemu.pid, signal.SIGTERM)  # QEMU's own way to power off
    child.communicate(timeout=20)  # type: ignore[attr-defined]
    assert child.returncode in (137, 255)  # type: ignore[attr-defined]
    ctr("task", "rm", container)
    wait_gone(everyone.values(), timeout=8)


@pytest.mark.vm
def test_a_shim_that_is_asked_to_stop_cleans_up_itself(ctr: Ctr) -> None:
    container = ctr.detached("sleep", "1000", options=["--null-io"])
    everyone = members(ctr, container)
    shim = next(item for item in everyone.values() if item.role == "shim")
    os.kill(shim.pid, signal.SIGTERM)
    wait_gone(everyone.values(), timeout=15)


@pytest.mark.vm
def test_a_shim_that_is_killed_while_it_ends_leaves_nothing(ctr: Ctr, tmp_path: Path) -> None:
    """Its logger is deaf, so it has some seconds to go after its socket."""
    program = tmp_path / "logger"
    program.write_text(f"#!/bin/sh\n# of {ctr.daemon.root}\nexec 5>&-\nexec sleep 1000\n")
    program.chmod(0o755)
    container = ctr.detached("sleep", "1000", options=["--log-uri", f"binary://{program}"])
    everyone = members(ctr, container)
    shim = next(item for item in everyone.values() if item.role == "shim")
    os.kill(shim.pid, signal.SIGTERM)
    until("the socket is gone", lambda: not any(path.exists() for path in ctr.daemon.shim_sockets(container)))
    assert process.alive([shim])
    os.kill(shim.pid, signal.SIGKILL)
    wait_gone(everyone.values(), timeout=8)
    until("the sandbox is gone", lambda: not (leak.RUN / ctr.daemon.namespace / container).exists())
