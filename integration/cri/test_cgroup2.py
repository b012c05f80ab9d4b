"""A node whose cgroups are v2: containerd and all below it see only that hierarchy, as a mount namespace of their own
shows it. Where controllers are in the hands of v1, it has none: what is then left is the places of processes and the
form of statistics."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration import process
from integration.conftest import daemon_arguments
from integration.cri.conftest import running
from integration.cri.crictl import OWN_PIDS, Crictl
from integration.cri.daemon import CriContainerd
from integration.ctr import Ctr
from integration.until import until

pytestmark = pytest.mark.vm

ONLY_V2 = 'umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"'


@pytest.fixture(scope="module")
def crictl(request: pytest.FixtureRequest, image: Path, pause_image: Path) -> Iterator[Crictl]:
    version, _, sandboxer = request.param.partition("-")
    daemon = CriContainerd(
        *daemon_arguments(request.config, version),
        snapshotter="overlayfs",
        sandboxer=sandboxer or "podsandbox",
    )
    daemon.prefix = ("unshare", "--mount", "sh", "-c", ONLY_V2, "sh", *daemon.prefix)
    with running(daemon, request.config, image, pause_image) as crictl:
        yield crictl


def places(crictl: Crictl, pod: str) -> dict[str, str]:
    """Role of each of the pod's processes: its cgroup in v2's hierarchy."""
    shims = {pid: item for pid, item in process.every().items() if f"-id {pod} " in f"{item.command} "}
    found = {}
    for item in {**process.descendants(shims), **shims}.values():
        lines = Path(f"/proc/{item.pid}/cgroup").read_text().splitlines()
        (found[item.role],) = [line.removeprefix("0::") for line in lines if line.startswith("0::")]
    return found


def test_a_pod_is_in_its_cgroup_of_v2_and_its_statistics_are_of_v2(crictl: Crictl) -> None:
    parent = f"/{crictl.daemon.root.name}"
    pod = crictl.run_pod(linux={**OWN_PIDS, "cgroup_parent": parent})
    container = pod.run("sh", "-c", "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 100000")
    found = places(crictl, pod.id)
    assert found == dict.fromkeys(("shim", "qemu", "virtiofsd", "device"), f"{parent}/{pod.id}")
    ctr = Ctr(crictl.daemon, "io.containerd.kata-py.v2", "overlayfs")
    shown = json.loads(ctr("task", "metrics", "--format", "json", container).ok().out)
    assert shown["memory"]["usage"] > 0 and shown["cpu"]["usage_usec"] > 0, shown
    (stats,) = json.loads(crictl("stats", "-o", "json", "--id", container).ok().out)["stats"]
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 0
    pod.remove()
    until("the cgroup is removed", lambda: not Path("/sys/fs/cgroup/unified", parent.lstrip("/")).exists())


def test_a_killed_shim_s_cgroup_is_removed(crictl: Crictl) -> None:
    parent = f"/{crictl.daemon.root.name}"
    pod = crictl.run_pod(linux={**OWN_PIDS, "cgroup_parent": parent})
    shim = next(item for item in process.every().values() if f"-id {pod.id} " in f"{item.command} ")
    os.kill(shim.pid, signal.SIGKILL)
    until(
        "the pod is not ready",
        lambda: pod.id not in crictl("pods", "--state", "ready", "--no-trunc", "-q").ok().text,
    )
    # With the shim itself as sandboxer, containerd fails until it is done with its own clean-up. kubelet asks again.
    until("the pod is stopped", lambda: crictl("stopp", pod.id).code == 0)
    until("the pod is removed", lambda: crictl("rmp", pod.id).code == 0)
    until(
        "the cgroup is removed",
        lambda: not Path("/sys/fs/cgroup/unified", parent.lstrip("/"), pod.id).exists(),
    )
