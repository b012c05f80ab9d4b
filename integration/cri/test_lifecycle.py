"""Pods from their start to their end, also a bad one: limits, logs, failures, and several at a time."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from integration import process
from integration.conftest import PAYLOAD, assert_whole
from integration.cri.crictl import OWN_PIDS, Crictl, Pod
from integration.until import until

MIB = 1 << 20


def limited(**resources: int) -> dict[str, Any]:
    return {**OWN_PIDS, "resources": resources}


def test_a_container_over_its_memory_limit_is_oom_killed(pod: Pod, crictl: Crictl) -> None:
    limits = limited(memory_limit_in_bytes=24 * MIB, memory_swap_limit_in_bytes=24 * MIB)
    container = pod.run("dd", "if=/dev/zero", "of=/dev/null", "bs=64M", linux=limits)
    status = crictl.ended(container)
    assert (status["reason"], status["exitCode"]) == ("OOMKilled", 137)


def test_a_log_file_is_whole(pod: Pod, crictl: Crictl) -> None:
    """64 MiB of lines."""
    wanted = base64.encodebytes(PAYLOAD) * 6
    container = pod.run("sh", "-c", "for i in 1 2 3 4 5 6; do base64 /payload; done")
    assert crictl.ended(container)["exitCode"] == 0
    log = Path(crictl.status(container)["logPath"])

    def lines() -> list[bytes]:
        return log.read_bytes().splitlines(keepends=True)

    # CRI tells of the exit a little earlier than it has written the last line.
    until("the log has all lines", lambda: len(lines()) >= wanted.count(b"\n"), 30)
    assert {line.split(b" ", 3)[1] for line in lines()} == {b"stdout"}
    text = b"".join(line.split(b" ", 3)[3] for line in lines())
    assert len(text) > 64 * MIB and hashlib.sha256(text).digest() == hashlib.sha256(wanted).digest()


def test_stats_and_update_are_the_container_s(pod: Pod, crictl: Crictl) -> None:
    container = pod.run("sh", "-c", "while :; do :; done", linux=limited(memory_limit_in_bytes=64 * MIB))
    (stats,) = json.loads(crictl("stats", "-o", "json", "--id", container).ok().out)["stats"]
    assert int(stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
    assert 0 < int(stats["memory"]["workingSetBytes"]["value"]) < 64 * MIB
    crictl("update", "--memory", str(48 * MIB), container).ok()
    limit = "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || true"
    assert crictl.sh(container, limit) == f"{48 * MIB}\n"


@pytest.mark.vm
def test_the_vm_grows_for_containers_that_come_later_and_for_their_updates(pod: Pod, crictl: Crictl) -> None:
    """A pod of crictl's: nobody has said what its containers will want."""
    memory = "free -m | sed -n 's/^Mem: *\\([0-9]*\\).*/\\1/p'"
    size = f"{memory}; nproc; cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"
    limits = limited(memory_limit_in_bytes=400 * MIB, cpu_quota=200000, cpu_period=100000)
    container = pod.run("sleep", "100000", linux=limits)
    mib, cpus, memory, *cpu = crictl.sh(container, size).split()
    assert int(mib) > 600 and int(cpus) == min(2, os.cpu_count() or 1)
    assert (int(memory), cpu) == (400 * MIB, ["200000", "100000"])
    crictl(
        "update", "--memory", str(1200 * MIB), "--cpu-quota", "150000", "--cpu-period", "100000", container
    ).ok()
    mib, _, memory, *cpu = crictl.sh(container, size).split()
    assert int(mib) > 1400 and (int(memory), cpu) == (1200 * MIB, ["150000", "100000"])
    # More than the whole VM had, in one process.
    assert "1+0 records out" in crictl.sh(container, "dd if=/dev/zero of=/dev/null bs=500M count=1 2>&1")
    assert_whole(crictl.exec(container, "cat", "/payload").ok().out)
    crictl("rm", "--force", container).ok()


def test_a_running_pod_is_removed_with_all_that_is_in_it(crictl: Crictl) -> None:
    pod = crictl.run_pod()
    for _ in range(2):
        pod.run("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    crictl("rmp", "--force", pod.id).ok()
    assert pod.id not in crictl.pods()


def test_pods_side_by_side_are_strangers(crictl: Crictl) -> None:
    def story(number: int) -> str:
        pod = crictl.run_pod(hostname=f"pod-{number}")
        container = pod.run("sleep", "100000")
        crictl.sh(container, f"echo {number} >/dev/shm/number; echo {number} >/tmp/number")
        said = crictl.sh(container, "hostname; cat /dev/shm/number /tmp/number")
        pod.remove()
        return said

    with ThreadPoolExecutor(5) as threads:
        told = list(threads.map(story, range(5)))
    assert told == [f"pod-{number}\n{number}\n{number}\n" for number in range(5)]


def test_a_pod_without_a_network_fails_and_the_next_one_works(crictl: Crictl) -> None:
    daemon = crictl.daemon
    daemon.set_network([daemon.bridge(subnets=["10.88.0.0/32"])])  # no address to be had
    crictl.wait_ready()
    try:
        failed = crictl("runp", "--runtime", crictl.handler, str(crictl.pod_config()))
    finally:
        daemon.set_network([daemon.bridge()])
    assert failed.code != 0 and "network" in failed.err
    crictl.wait_ready()
    works(crictl)


def works(crictl: Crictl) -> None:
    pod = crictl.run_pod()
    container = pod.run("echo", "fine")
    assert crictl.ended(container)["exitCode"] == 0
    pod.remove()


@pytest.mark.vm
@pytest.mark.parametrize(
    ("setting", "words"),
    [('kernel = "/no/such/kernel"', "/no/such/kernel"), ("memory_mib = 80000000", "memory")],
)
def test_a_pod_whose_vm_cannot_start_says_why_and_leaves_nothing(
    crictl: Crictl, setting: str, words: str
) -> None:
    crictl.daemon.set_for_shims(f'{setting}\ntemplate = "off"\n')
    try:
        failed = crictl("runp", "--runtime", crictl.handler, str(crictl.pod_config()))
    finally:
        crictl.daemon.set_for_shims("")
    assert failed.code != 0 and words in failed.err
    works(crictl)


@pytest.mark.vm
def test_the_vm_has_the_pod_s_size_and_is_in_its_cgroup(crictl: Crictl) -> None:
    crictl.daemon.set_for_shims('template = "off"\n')  # this size is nobody else's
    parent = f"/{crictl.daemon.root.name}"
    resources = {"memory_limit_in_bytes": 300 * MIB, "cpu_quota": 150000, "cpu_period": 100000}
    try:
        pod = crictl.run_pod(linux={**OWN_PIDS, "cgroup_parent": parent, "resources": resources})
    finally:
        crictl.daemon.set_for_shims("")
    container = pod.run("sleep", "100000")
    mib = int(crictl.sh(container, "grep MemTotal /proc/meminfo").split()[1]) >> 10
    assert 600 < mib < 768  # 256 for guest and agent and 300, rounded up
    assert crictl.sh(container, "nproc") == f"{min(2, os.cpu_count() or 1)}\n"
    shims = {pid: item for pid, item in process.every().items() if f"-id {pod.id}" in item.command}
    members = {item.role: item.pid for item in {**process.descendants(shims), **shims}.values()}
    for role in ("shim", "qemu", "virtiofsd", "device"):
        places = Path(f"/proc/{members[role]}/cgroup").read_text()
        assert f"{parent}/{pod.id}\n" in places, f"{role} is at {places}"
    (stats,) = json.loads(crictl("statsp", "-o", "json", "--id", pod.id).ok().out)["stats"]
    whole, inside = stats["linux"], stats["linux"]["containers"]
    assert [item["attributes"]["id"] for item in inside] == [container]
    # The pod's are its cgroup's on the host: the whole VM's, and so more than the container's in the guest.
    for used in (item["memory"]["workingSetBytes"]["value"] for item in (whole, inside[0])):
        assert int(used) > 0
    assert int(whole["memory"]["workingSetBytes"]["value"]) > 50 * MIB
    pod.remove()
