"""A VM that grows for its containers' limits, and what then goes through the memory that it did not boot with."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from integration.conftest import PAYLOAD, template_mode
from integration.ctr import Ctr
from integration.test_control import CGROUP_MOUNT, update
from integration.ttrpc import Task

pytestmark = pytest.mark.vm
MIB = 1 << 20
COPY = "until [ -e /enough ]; do cp /payload /copy && cmp /payload /copy && rm /copy || exit; done; echo all alike"
FILL = ["--mount", "type=tmpfs,src=tmpfs,dst=/fill,options=size=800m"]


@pytest.fixture(scope="module")
def box(ctr: Ctr) -> Iterator[str]:
    """A container without limits that sees its cgroup, and has room in memory if the VM has."""
    container = ctr.new_id()
    options = ["-d", "--null-io", *CGROUP_MOUNT, *FILL]
    try:
        ctr(*ctr.run_args(container, "sleep", "100000", options=options)).ok()
        yield container
    finally:
        ctr.remove(container)


def guest_size(ctr: Ctr, container: str) -> tuple[int, int]:
    """MiB and CPUs as the guest has them."""
    shown = ctr.exec(container, "sh", "-c", "grep MemTotal /proc/meminfo; nproc").ok().text.split()
    return int(shown[1]) >> 10, int(shown[3])


def sandbox(ctr: Ctr, container: str) -> dict[str, Any]:
    """What `kata-py ps` says of it."""
    own = ctr.daemon.namespace
    found = json.loads(ctr.daemon.tool("ps", "--json"))
    (shown,) = (item for item in found if (item["namespace"], item["sandbox"]) == (own, container))
    return dict(shown)


def vm_size(ctr: Ctr, container: str) -> tuple[int, int]:
    """MiB and CPUs as the shim has it."""
    shown = sandbox(ctr, container)
    return shown["memory_mib"], shown["vcpus"]


def limits(ctr: Ctr, container: str) -> list[str]:
    read = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max cpu.max"
    return ctr.exec(container, "sh", "-c", read).ok().text.split()


@pytest.mark.once
def test_an_update_beyond_the_vm_makes_it_larger_and_everything_uses_the_new_memory(
    ctr: Ctr, box: str
) -> None:
    cpus = min(2, os.cpu_count() or 1)
    assert vm_size(ctr, box) == (256, 1)
    mib, nproc = guest_size(ctr, box)
    assert 200 < mib < 256 and nproc == 1
    # It never stops reading and writing the shared directory, whose server's view of the memory changes meanwhile.
    busy = ctr.spawn(*ctr.exec_args(box, "sh", "-c", COPY))
    with Task(ctr.daemon.shim_address(box), timeout=30) as task:
        wanted = {"memory": {"limit": 600 * MIB}, "cpu": {"quota": 150000, "period": 100000}}
        assert update(task, box, wanted).code == 0
        assert limits(ctr, box) == [str(600 * MIB), "150000", "100000"]
        assert vm_size(ctr, box) == (1024, cpus)
        mib, nproc = guest_size(ctr, box)
        assert 950 < mib < 1024 and nproc == cpus
        ctr.exec(box, "touch", "/enough").ok()
        assert busy.communicate(timeout=60) == (b"all alike\n", b"") and busy.returncode == 0
        # More than it had. The guest's kernel now takes its buffers from the new memory first.
        ctr.exec(box, "sh", "-c", "for i in $(seq 24); do cat /payload; done >/fill/out").ok()
        shown = ctr.exec(box, "cat", "/fill/out").ok().out
        assert hashlib.sha256(shown).digest() == hashlib.sha256(PAYLOAD * 24).digest()
        child = ctr.spawn(*ctr.exec_args(box, "sh", "-c", "echo; cat >/fill/in"), stdin=subprocess.PIPE)
        assert child.stdout and child.stdout.readline() == b"\n"
        child.communicate(PAYLOAD * 3, timeout=60)
        ctr.exec(box, "sh", "-c", "cp /fill/in /shared-in && sync && rm /fill/*").ok()
        back = ctr.exec(box, "cat", "/shared-in").ok().out
        assert hashlib.sha256(back).digest() == hashlib.sha256(PAYLOAD * 3).digest()
        # What is there stays; a limit that asks for less, or for more than there can be, is one of the cgroup's.
        assert update(task, box, {"memory": {"limit": 100 * MIB}, "cpu": {"quota": -1}}).code == 0
        assert vm_size(ctr, box) == (1024, cpus)
        assert limits(ctr, box)[:2] == [str(100 * MIB), "max"]
        assert update(task, box, {"cpu": {"quota": 64 * 100000, "period": 100000}}).code == 0
        assert vm_size(ctr, box) == (1024, min(16, os.cpu_count() or 1))
        assert limits(ctr, box)[1:] == ["6400000", "100000"]


@pytest.mark.short
def test_a_container_that_is_alone_finds_its_limits_in_the_vm(
    ctr: Ctr, request: pytest.FixtureRequest
) -> None:
    """Also when the VM comes from the template, which is smaller."""
    container = ctr.detached("sleep", "100000", options=["--null-io", "--memory-limit", str(300 * MIB)])
    shown = sandbox(ctr, container)
    restores = template_mode(request.config, request.node.callspec.params["containerd"]) == "auto"
    assert (shown["origin"], shown["memory_mib"]) == ("template" if restores else "boot", 768)
    assert guest_size(ctr, container)[0] > 700
