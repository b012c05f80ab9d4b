"""What containers see of the host's files and disks."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cri.crictl import OWN_PIDS, Crictl, Pod
from integration.until import until

FOLLOWING = 1  # CRI's PROPAGATION_HOST_TO_CONTAINER


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder whose mounts other mount namespaces get to know, as all of a node's do where systemd runs."""
    path = tmp_path_factory.mktemp("node")
    subprocess.run(["mount", "--bind", path, path], check=True)
    subprocess.run(["mount", "--make-shared", path], check=True)
    yield path
    subprocess.run(["umount", "-R", path], check=True)


@pytest.fixture(scope="module")
def pod(crictl: Crictl, node: Path) -> Iterator[Pod]:
    made = crictl.run_pod()
    yield made
    made.remove()


def mount(host: Path, container: str, **more: object) -> dict[str, object]:
    return {"host_path": str(host), "container_path": container, **more}


def publish(volume: Path, revision: str, token: str) -> None:
    """As kubelet's atomic writer does it: a new directory, and one rename of the link to it."""
    (volume / f"..{revision}").mkdir(parents=True)
    (volume / f"..{revision}/token").write_text(token)
    if not (volume / "token").is_symlink():
        (volume / "token").symlink_to("..data/token")
    (volume / "..data_tmp").symlink_to(f"..{revision}")
    (volume / "..data_tmp").rename(volume / "..data")


def test_a_secret_s_update_becomes_visible(pod: Pod, crictl: Crictl, tmp_path: Path) -> None:
    publish(tmp_path, "1", "old")
    (tmp_path / "plain").write_text("a file for itself")
    mounts = [
        mount(tmp_path, "/secret", readonly=True),
        mount(tmp_path / "plain", "/etc/plain", readonly=True),
    ]
    container = pod.run("sleep", "100000", mounts=mounts)
    assert crictl.sh(container, "cat /secret/token /etc/plain") == "olda file for itself"
    publish(tmp_path, "2", "new")
    until("the new one is seen", lambda: crictl.sh(container, "cat /secret/token") == "new")
    assert crictl.exec(container, "sh", "-c", "echo x >/etc/plain").code != 0
    assert (tmp_path / "plain").read_text() == "a file for itself"


def test_later_mounts_of_the_host_are_seen_where_they_are_asked_for(
    pod: Pod, crictl: Crictl, node: Path
) -> None:
    sub = node / "data/sub"
    sub.mkdir(parents=True)
    follows = pod.run("sleep", "100000", mounts=[mount(sub.parent, "/data", propagation=FOLLOWING)])
    private = pod.run("sleep", "100000", mounts=[mount(sub.parent, "/data")])
    for container in (follows, private):
        crictl.sh(container, "ls /data/sub")
    subprocess.run(["mount", "-t", "tmpfs", "later", sub], check=True)
    (sub / "file").write_text("mounted later")
    until(
        "the later mount is seen",
        lambda: crictl.exec(follows, "cat", "/data/sub/file").text == "mounted later",
    )
    assert crictl.exec(private, "cat", "/data/sub/file").code != 0


@pytest.fixture
def memory_volume(node: Path) -> Iterator[Path]:
    """An emptyDir with `medium: Memory` and a size limit of 8 MiB, as kubelet makes it."""
    path = node / "pods/uid-1/volumes/kubernetes.io~empty-dir/cache"
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=1777", "tmpfs", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def sub_path(node: Path, memory_volume: Path) -> Iterator[Path]:
    """A directory of that volume under the name by which kubelet gives it to a container (subPath)."""
    path = node / "pods/uid-1/volume-subpaths/cache/c/0"
    path.mkdir(parents=True)
    (memory_volume / "a").mkdir(mode=0o755)
    subprocess.run(["mount", "--bind", memory_volume / "a", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_an_empty_dir_in_memory_is_a_tmpfs_of_its_size_for_all_containers(
    pod: Pod, crictl: Crictl, memory_volume: Path, sub_path: Path
) -> None:
    one, two = (pod.run("sleep", "100000", mounts=[mount(memory_volume, "/cache")]) for _ in range(2))
    filesystem, size = crictl.sh(one, "df -k /cache | tail -n 1").split()[:2]
    assert (filesystem, size) == ("tmpfs", "8192")
    crictl.sh(one, "echo hot >/cache/entry; chown 1000 /cache/entry")
    assert crictl.sh(two, "cat /cache/entry; stat -c %u:%a /cache/entry /cache") == "hot\n1000:644\n0:1777\n"
    crictl("rm", "--force", one).ok()
    assert crictl.sh(two, "cat /cache/entry") == "hot\n"
    part = pod.run("sleep", "100000", mounts=[mount(sub_path, "/part")])
    crictl.sh(part, "echo by its part >/part/entry")
    assert crictl.sh(two, "cat /cache/a/entry; stat -c %a /cache/a") == "by its part\n755\n"


@pytest.mark.vm
def test_read_only_is_all_below_it(pod: Pod, crictl: Crictl, node: Path) -> None:
    sub = node / "tree/sub"
    sub.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "below", sub], check=True)
    container = pod.run("sleep", "100000", mounts=[mount(sub.parent, "/tree", readonly=True)])
    assert "Read-only" in crictl.exec(container, "touch", "/tree/sub/file").err
    assert list(sub.iterdir()) == []


def test_the_pod_s_shm_has_the_size_that_cri_gives_it(pod: Pod, crictl: Crictl) -> None:
    container = pod.run("sleep", "100000")
    assert crictl.sh(container, "df -k /dev/shm | tail -n 1").split()[1] == "65536"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, bytes]]:
    """A block device of the host, 8 MiB, and what is on it."""
    content = random.Random("disk").randbytes(8 << 20)
    (tmp_path / "image").write_bytes(content)
    found = subprocess.run(
        ["losetup", "--find", "--show", tmp_path / "image"], check=True, capture_output=True
    )
    device = Path(found.stdout.decode().strip())
    yield device, content
    subprocess.run(["losetup", "--detach", device], check=True)


def test_a_block_volume_is_a_disk_under_its_path(
    pod: Pod, crictl: Crictl, disk: tuple[Path, bytes], tmp_path: Path
) -> None:
    device, content = disk
    wanted = {"container_path": "/dev/xvda", "host_path": str(device), "permissions": "rwm"}
    container = pod.run("sleep", "100000", devices=[wanted])
    shown = crictl.sh(container, "test -b /dev/xvda && sha256sum </dev/xvda; test -c /dev/null && echo null")
    assert shown.split() == [hashlib.sha256(content).hexdigest(), "-", "null"]
    crictl.sh(container, "printf changed | dd of=/dev/xvda bs=1 seek=1000000 conv=notrunc,fsync 2>/dev/null")
    crictl("rm", "--force", container).ok()
    subprocess.run(["blockdev", "--flushbufs", device], check=True)
    assert (tmp_path / "image").read_bytes() == content[:1000000] + b"changed" + content[1000007:]


@pytest.mark.vm
def test_a_disk_leaves_the_vm_with_its_container(pod: Pod, crictl: Crictl, disk: tuple[Path, bytes]) -> None:
    wanted = {"container_path": "/dev/xvda", "host_path": str(disk[0]), "permissions": "r"}
    watcher = pod.run("sleep", "100000")
    reader = pod.run("sleep", "100000", devices=[wanted], linux=OWN_PIDS)
    assert crictl.sh(watcher, "ls /sys/block | grep vd; cat /sys/block/vd*/ro").split()[1:] == ["1"]
    crictl("rm", "--force", reader).ok()
    assert crictl.sh(watcher, "ls /sys/block | grep -c vd || true") == "0\n"
