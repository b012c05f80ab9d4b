"""emptyDirs in memory, as kubelet lays them out, and what stands for them in the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shim.agent.api import Storage
from shim.sandbox import memory_volumes
from shim.sandbox.memory_volumes import memory_volume

POINT = "/run/kata-containers/sandbox/ephemeral/uid-1/cache"


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pod's directory with a volume of 4096 bytes, and two subPaths of it that container c has."""
    pod = tmp_path / "pods/uid-1"
    volume = pod / "volumes/kubernetes.io~empty-dir/cache"
    volume.mkdir(parents=True)
    volume.chmod(0o2770)
    for name in ("cache/c/0", "cache/c/1", "other/c/0"):
        (pod / "volume-subpaths" / name).mkdir(parents=True)
        (pod / "volume-subpaths" / name).chmod(0o2755)
    in_memory = (volume, *(pod / "volume-subpaths/cache/c").iterdir())
    monkeypatch.setattr(memory_volumes, "tmpfs_bytes", lambda path: 4096 if path in in_memory else None)
    return pod


def mounts(pod: Path, *inside: str) -> str:
    """A mountinfo in which the container's subPaths are these directories of the volume."""
    lines = [f"36 35 0:9 / {pod}/volumes/kubernetes.io~empty-dir/cache rw shared:1 - tmpfs tmpfs rw"]
    for number, directory in enumerate(inside):
        place = f"{pod}/volume-subpaths/cache/c/{number}"
        lines.append(f"{40 + number} 35 0:9 {directory} {place} rw - tmpfs tmpfs rw")
    (pod / "mountinfo").write_text("\n".join(lines) + "\n")
    return str(pod / "mountinfo")


def tmpfs(pod: Path) -> Storage:
    found = os.stat(pod / "volumes/kubernetes.io~empty-dir/cache")
    options = ("size=4096", "mode=2770", f"uid={found.st_uid}", f"gid={found.st_gid}")
    return Storage("ephemeral", "tmpfs", "tmpfs", POINT, options, shared=True)


def test_it_is_a_tmpfs_of_its_size_mode_and_owner_that_stays(pod: Path) -> None:
    assert memory_volume(pod / "volumes/kubernetes.io~empty-dir/cache") == ([tmpfs(pod)], POINT)


def test_a_sub_path_is_a_directory_of_the_guest_s_tmpfs(pod: Path) -> None:
    source = pod / "volume-subpaths/cache/c/1"
    directory = Storage(
        "local", "local", "local", f"{POINT}/a b/c", ("mode=2755", f"fsgid={os.stat(source).st_gid}")
    )
    found = memory_volume(source, mounts(pod, "/a", "/a\\040b/c"))
    assert found == ([tmpfs(pod), directory], directory.mount_point)


@pytest.mark.parametrize("name", ["volumes/kubernetes.io~empty-dir", "volume-subpaths/other/c/0", "."])
def test_all_else_is_not_of_such_a_volume(pod: Path, name: str) -> None:
    assert memory_volume(pod / name, mounts(pod, "/a")) is None


def test_a_sub_path_whose_mount_is_not_to_be_seen_is_not_guessed(pod: Path) -> None:
    assert memory_volume(pod / "volume-subpaths/cache/c/1", mounts(pod, "/a")) is None


def test_its_owners_are_mapped(pod: Path) -> None:
    source = pod / "volume-subpaths/cache/c/1"
    found, ids = os.stat(source), (f"{os.getuid()}:1000:1", "0:2000:65535")
    made = memory_volume(source, mounts(pod, "/a", "/b"), ids=ids)
    assert made is not None
    volume, directory = made[0]
    assert volume.options[2:] == ("uid=1000", f"gid={2000 + found.st_gid}")
    assert directory.options[1:] == (f"fsgid={2000 + found.st_gid}",)
