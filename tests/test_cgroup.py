"""The host's cgroups of a sandbox, on directories that stand for them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from shim.errors import InvalidArgument
from shim.log import Log
from shim.record import Record, cgroup
from shim.sandbox.accounting import Accounting

V1 = """\
31 23 0:28 / /cg rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /cg/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /cg/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /cg/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /cg/unified rw,relatime - cgroup2 cgroup2 rw
"""
V2 = "41 31 0:38 / /cg rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.fixture
def mounts(tmp_path: Path) -> Path:
    return tmp_path / "mountinfo"


@pytest.mark.parametrize(
    ("table", "path", "expected"),
    [
        (V1, "/k8s.io/x", ["/cg/cpu,cpuacct/k8s.io/x", "/cg/memory/k8s.io/x"]),
        (V2, "/k8s.io/x", ["/cg/k8s.io/x"]),
        (V2, "", []),
        (
            V2,
            "kubepods-burstable-pod1.slice:cri-containerd:x",
            [
                "/cg/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-x.scope"
            ],
        ),
    ],
)
def test_a_path_is_one_in_each_hierarchy(mounts: Path, table: str, path: str, expected: list[str]) -> None:
    mounts.write_text(table)
    assert cgroup.paths(path, str(mounts)) == expected


def test_mounts_of_any_name_and_of_none_are_no_obstacle(mounts: Path) -> None:
    mounts.write_bytes(b"28 1 0:25 / /mnt/\xe4 rw - tmpfs  rw\n" + V2.encode())
    assert cgroup.paths("/x", str(mounts)) == ["/cg/x"]


@pytest.mark.parametrize("path", ["/", "/../x", "/a/./b", "/a\0b"])
def test_a_path_that_leads_elsewhere_is_refused(mounts: Path, path: str) -> None:
    mounts.write_text(V2)
    with pytest.raises(InvalidArgument, match="cgroupsPath"):
        cgroup.paths(path, str(mounts))


def test_a_new_cpuset_has_its_parents_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuset.cpus").write_text("0-1\n")
    (tmp_path / "cpuset.mems").write_text("0\n")
    real = os.mkdir

    def mkdir(path: str, mode: int) -> None:  # as the kernel does it
        real(path, mode)
        for name in ("cpuset.cpus", "cpuset.mems"):
            Path(path, name).write_text("\n")

    monkeypatch.setattr(os, "mkdir", mkdir)
    made = cgroup.make(f"{tmp_path}/a/b")
    assert made == [f"{tmp_path}/a", f"{tmp_path}/a/b"]
    assert (tmp_path / "a/b/cpuset.cpus").read_text() == "0-1"
    assert cgroup.make(f"{tmp_path}/a/b") == []


def test_one_that_is_in_use_is_waited_for_and_one_that_is_gone_is_fine(tmp_path: Path) -> None:
    cgroup.remove(f"{tmp_path}/none", 0)
    (tmp_path / "full/inner").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        cgroup.remove(f"{tmp_path}/full", time.monotonic())


def test_a_sandbox_enters_and_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []
    monkeypatch.setattr(cgroup, "paths", lambda path: [f"{tmp_path}/cg{path}"])
    monkeypatch.setattr(cgroup, "current", lambda: ["/before"])
    monkeypatch.setattr(cgroup, "enter", entered.append)
    record = Record(str(tmp_path), "ns", "c1", "")
    (tmp_path / "cg").mkdir()
    accounting = Accounting("/ns/c1", record, Log(2, "error"))
    accounting.enter()
    accounting.enter()
    assert record.cgroups == [f"{tmp_path}/cg/ns/c1"] == Record.load(str(tmp_path)).cgroups
    assert (tmp_path / "cg/ns/c1").is_dir()
    import asyncio

    asyncio.run(accounting.aclose())
    assert entered == [f"{tmp_path}/cg/ns/c1"] * 2 + ["/before"]
    assert record.cgroups == [] and not (tmp_path / "cg/ns").exists()


def test_where_it_may_not_the_sandbox_goes_on_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroup, "paths", lambda path: ["/proc/no/such"])
    log = tmp_path / "log"
    record = Record(str(tmp_path), "ns", "c1", "")
    with log.open("w") as file:
        Accounting("/ns/c1", record, Log(file.fileno(), "info")).enter()
    assert "not in the pod's cgroup" in log.read_text()
