"""What a container as a whole can be asked: to stand still, its limits, what it uses, what runs in it."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator
from typing import Any

import pytest

from integration.ctr import Ctr
from integration.events import recorded
from integration.exec import shim_service
from integration.ttrpc import Answer, Task, message
from integration.until import until

CGROUP_MOUNT = ["--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro"]
MIB = 1 << 20


@pytest.fixture(scope="module")
def box(ctr: Ctr) -> Iterator[str]:
    """A container that sees its cgroup and has room for 100 MiB."""
    container = ctr.new_id()
    options = ["-d", "--null-io", "--memory-limit", str(100 * MIB), *CGROUP_MOUNT]
    try:
        ctr(*ctr.run_args(container, "sleep", "100000", options=options)).ok()
        yield container
    finally:
        ctr.remove(container)


def usage(ctr: Ctr, container: str) -> dict[str, Any]:
    """What ctr makes of an answer to Stats that is not an old one."""
    time.sleep(1.1)
    found: dict[str, Any] = json.loads(ctr("task", "metrics", "--format", "json", container).ok().text)
    return found


@pytest.mark.short
def test_metrics_are_of_what_the_container_does(ctr: Ctr, box: str) -> None:
    before = usage(ctr, box)
    busy = "n=0; while [ $n -lt 20000 ]; do n=$((n+1)); done; dd if=/dev/zero of=/dev/shm/x bs=1M count=20"
    ctr.exec(box, "sh", "-c", busy).ok()
    ctr(
        "task", "exec", "-d", "--exec-id", "many", box, "sh", "-c", "sleep 300 & sleep 300 & sleep 300 & wait"
    ).ok()
    after = usage(ctr, box)
    used_ns = after["cpu"]["usage"]["total"] - before["cpu"]["usage"]["total"]
    assert 20_000_000 < used_ns < 60_000_000_000
    grown = after["memory"]["usage"]["usage"] - before["memory"]["usage"]["usage"]
    assert 18 * MIB < grown < 40 * MIB
    assert after["memory"]["usage"]["limit"] == 100 * MIB
    assert after["pids"]["current"] - before["pids"]["current"] == 4
    # And as a user sees them.
    table = [line.split() for line in ctr("task", "metrics", box).ok().text.splitlines()]
    (shown,) = (int(words[1]) for words in table if words[:1] == ["memory.usage_in_bytes"])
    assert shown > 18 * MIB
    rows = [line.split(maxsplit=1) for line in ctr("task", "ps", box).ok().text.splitlines()[1:]]
    assert len(rows) == 5, "sleep, sh and three more"
    assert rows[0][0] == str(ctr.tasks()[box][0])
    assert len([info for _, info in rows if "many" in info]) == 1
    ctr.exec(box, "killall", "sleep").ok()  # all but the init process, which has no handler for it


def update(task: Task, container: str, limits: object) -> Answer:
    resources = message(
        f1="types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", f2=json.dumps(limits)
    )
    return task.call("Update", f1=container, f2=resources)


@pytest.mark.vm
def test_limits_are_changed_in_the_guest(ctr: Ctr, box: str) -> None:
    read = "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max pids.max cpu.max cpu.weight"
    with Task(ctr.daemon.shim_address(box)) as task:
        cpu = {"quota": 50000, "period": 100000, "shares": 512, "cpus": "0-63", "burst": 20000}
        unified = {"memory.high": str(80 * MIB)}
        limits = {"memory": {"limit": 90 * MIB}, "pids": {"limit": 50}, "cpu": cpu, "unified": unified}
        assert update(task, box, limits).code == 0
        memory, pids, quota, period, weight = ctr.exec(box, "sh", "-c", read).ok().text.split()
        assert (int(memory), int(pids), int(quota), int(period)) == (90 * MIB, 50, 50000, 100000)
        assert int(weight) == 20
        further = read[: read.index("cat")] + "cat memory.high cpu.max.burst"
        assert ctr.exec(box, "sh", "-c", further).ok().text.split() == [str(80 * MIB), "20000"]
        for wrong, name in [
            ({"memory": {"limit": "64M"}}, "resources.memory.limit"),
            ({"cpu": {"shares": 1}}, "resources.cpu.shares"),
            ({"cpu": {"quota": 1}}, "resources.cpu.quota"),
            ({"pids": {"limit": -3}}, "resources.pids.limit"),
            ({"memory": {"swappiness": 300}}, "swappiness"),
            ({"unified": {"memory.high": "much"}}, "memory.high: cannot be set to 'much'"),
            ([], "resources"),
        ]:
            answer = update(task, box, wrong)
            assert answer.code == 3, answer
            assert name in answer.message
        lifted = {"cpu": {"quota": -1}, "unified": {"memory.high": "max"}}
        assert update(task, box, lifted).code == 0
    assert ctr.exec(box, "sh", "-c", read).ok().text.split()[:3] == [str(90 * MIB), "50", "max"]


def test_pause_stops_a_counter_and_resume_lets_it_go_on(ctr: Ctr) -> None:
    container = ctr.new_id()
    count = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done"
    child = ctr.spawn(*ctr.run_args(container, "sh", "-c", count, options=["--rm"]))
    assert child.stdout
    out = child.stdout.fileno()
    assert child.stdout.readline() == b"1\n"

    def drain() -> list[int]:
        """All that comes until nothing has for a second."""
        text = b""
        while select.select([out], [], [], 1.0)[0]:
            text += os.read(out, 65536)
        return [int(line) for line in text.split()]

    ctr("task", "pause", container).ok()
    seen = [1, *drain()]
    assert ctr.tasks()[container][1] == "PAUSED"
    assert "paused" in ctr.exec(container, "true").err
    assert "paused" in ctr("task", "pause", container).err
    before = usage(ctr, container)["cpu"]["usage"]["total"]
    assert usage(ctr, container)["cpu"]["usage"]["total"] == before
    assert drain() == []
    ctr("task", "resume", container).ok()
    until("it runs again", lambda: ctr.tasks()[container][1] == "RUNNING")
    seen += [int(child.stdout.readline()) for _ in range(20)]
    assert seen == list(range(1, len(seen) + 1)), "nothing is lost or counted twice"
    ctr("task", "pause", container).ok()
    ctr("task", "kill", "-s", "SIGKILL", container).ok()
    child.communicate(timeout=60)
    assert child.returncode == 137


def test_out_of_memory_is_told_before_the_exit_137(ctr: Ctr) -> None:
    with recorded(ctr) as events:
        eater = ["sh", "-c", "tail /dev/zero"]
        container = ctr.detached(*eater, options=["--null-io", "--memory-limit", str(32 * MIB)])
        until("the task is stopped", lambda: ctr.tasks()[container][1] == "STOPPED", timeout=60)
        assert usage(ctr, container)["memory_oom_control"]["oom_kill"] >= 1
        ctr("task", "rm", container)
        events.wait_for("/tasks/delete", container)
    ours = events.of(container)
    topics = [topic for topic, _ in ours]
    assert topics == ["/tasks/create", "/tasks/start", "/tasks/oom", "/tasks/exit", "/tasks/delete"]
    assert ours[3][1]["exit_status"] == 137


@pytest.mark.vm
def test_a_limit_that_an_exec_breaks_is_told_and_the_container_goes_on(ctr: Ctr, box: str) -> None:
    with recorded(ctr) as events:
        assert ctr.exec(box, "sh", "-c", "exec tail /dev/zero").code == 137
        assert ctr.exec(box, "echo", "alive").ok().text == "alive\n"
        events.wait_for("/tasks/exit", box, count=2)
    topics = [topic for topic, _ in events.of(box)]
    assert topics[:4] == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/oom", "/tasks/exit"]


@pytest.mark.vm
def test_the_counters_can_be_had_of_a_stopped_task(ctr: Ctr) -> None:
    container = ctr.detached("true", options=["--null-io"])
    until("the task is stopped", lambda: ctr.tasks()[container][1] == "STOPPED")
    with Task(ctr.daemon.shim_address(container), service=shim_service(ctr)) as task:
        assert task.call("Stats", f1=container).code == 0
    assert usage(ctr, container)["cpu"]["usage"]["total"] > 0
