"""A pod with ids of its own (`hostUsers: false`): one user namespace for its containers, in the guest."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.cri.crictl import Crictl, Pod

pytestmark = pytest.mark.vm  # Debian's runc cannot map the ids of volumes

FIRST, COUNT = 100000, 65536
IDS = [{"container_id": 0, "host_id": FIRST, "length": COUNT}]
MAPPED = {"uidMappings": IDS, "gidMappings": IDS}
NAMESPACES = {"network": 0, "pid": 0, "ipc": 0, "userns_options": {"mode": 0, "uids": IDS, "gids": IDS}}


def linux(**security: object) -> dict[str, Any]:
    return {"security_context": {"namespace_options": NAMESPACES, **security}}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory, and an emptyDir in memory as kubelet makes it; all root's."""
    path = tmp_path_factory.mktemp("volumes")
    (path / "plain").mkdir(mode=0o755)
    memory = path / "pods/uid-1/volumes/kubernetes.io~empty-dir/cache"
    memory.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", memory], check=True)
    yield path
    subprocess.run(["umount", memory], check=True)


@pytest.fixture(scope="module")
def pod(crictl: Crictl, volumes: Path) -> Iterator[Pod]:
    if crictl.daemon.version != "2":
        pytest.skip("containerd 1.6 does not know userns_options, 1.7 does not map the ids of volumes")
    made = crictl.run_pod(linux=linux(privileged=True))
    yield made
    made.remove()


@pytest.mark.short
def test_containers_of_a_pod_have_one_user_namespace(pod: Pod, crictl: Crictl, volumes: Path) -> None:
    memory = volumes / "pods/uid-1/volumes/kubernetes.io~empty-dir/cache"
    mounts = [
        {"host_path": str(volumes / "plain"), "container_path": "/plain", **MAPPED},
        {"host_path": str(memory), "container_path": "/memory", **MAPPED},
    ]
    one = pod.run("sh", "-c", "touch /mine; exec sleep 100000", linux=linux(), mounts=mounts)
    two = pod.run("sleep", "100000", linux=linux(privileged=True))

    assert (
        crictl.sh(one, "cat /proc/self/uid_map /proc/self/gid_map").split()
        == ["0", f"{FIRST}", f"{COUNT}"] * 2
    )
    assert crictl.sh(one, "stat -c %u:%g / /bin/busybox /plain /memory /etc/hosts").split() == ["0:0"] * 5
    crictl.sh(one, "touch /plain/new /memory/new; chown 7:8 /plain/new")
    found = (volumes / "plain/new").stat()
    assert (found.st_uid, found.st_gid) == (7, 8)  # as in any pod: the ids of a volume are the container's

    users = "for kind in user ipc uts pid; do readlink /proc/self/ns/$kind; done"
    assert crictl.sh(one, users) == crictl.sh(two, users)
    assert crictl.sh(two, "ls /proc/[0-9]*/root/mine").strip().endswith("/root/mine")
    # Its root, privileged, may change what belongs to the pod and nothing of the guest's.
    crictl.sh(two, "mount -t tmpfs none /mnt; hostname of-two")
    assert crictl.sh(one, "hostname") == "of-two\n"
    assert crictl.exec(two, "sh", "-c", "echo 1 >/proc/sys/vm/overcommit_memory").code == 1
