"""Bundles on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim.errors import InvalidArgument, NotFound
from shim.rootfs.api import Mount
from shim.sandbox import bundle


def test_a_missing_or_broken_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=f"{tmp_path}/config.json"):
        bundle.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidArgument, match=f"{tmp_path}/config.json"):
        bundle.load(tmp_path)


def test_the_request_says_what_the_rootfs_is_made_of(tmp_path: Path) -> None:
    given = (Mount("overlay", "overlay", ("lowerdir=/a",)),)
    assert bundle.rootfs_mounts(tmp_path, {"root": {"path": "rootfs"}}, given) == given


@pytest.mark.parametrize(("path", "source"), [("/abs", "/abs"), ("rootfs", "{bundle}/rootfs")])
def test_without_mounts_it_is_the_directory_of_the_spec(tmp_path: Path, path: str, source: str) -> None:
    (mount,) = bundle.rootfs_mounts(tmp_path, {"root": {"path": path}}, ())
    assert (mount.type, mount.source) == ("bind", source.format(bundle=tmp_path))


@pytest.mark.parametrize("spec", [{}, {"root": None}, {"root": {"path": ""}}, {"root": {"path": 5}}])
def test_a_container_without_any_root_is_refused(tmp_path: Path, spec: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        bundle.rootfs_mounts(tmp_path, spec, ())


def test_the_resolver_comes_from_the_file_that_is_mounted(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    mount = {"destination": "/etc/resolv.conf", "type": "bind", "source": str(file)}
    assert bundle.resolv_conf({"mounts": [mount]}) == []
    file.write_bytes(b"nameserver 192.0.2.1\n# \xff\n")
    assert bundle.resolv_conf({"mounts": [mount]}) == ["nameserver 192.0.2.1", "# \ufffd"]
    assert bundle.resolv_conf({}) == []
    file.write_bytes(b"x" * 1_000_000)
    assert len(bundle.resolv_conf({"mounts": [mount]})[0]) <= 16384


def test_a_pod_s_mounts_are_added_where_the_spec_has_none() -> None:
    ours = {"destination": "/etc/hosts", "type": "bind", "source": "/own"}
    spec: dict[str, Any] = {"mounts": [ours]}
    pod = [
        {"destination": place, "type": "bind", "source": "/pod"} for place in ("/etc/hosts", "/etc/hostname")
    ]
    bundle.join_pod(spec, {"mounts": pod})
    assert spec["mounts"] == [ours, pod[1]]


@pytest.mark.parametrize(("ipc", "kept"), [("/proc/7/ns/ipc", "bind"), ("", "tmpfs")])
def test_the_pod_s_shared_memory_belongs_to_its_ipc_namespace(ipc: str, kept: str) -> None:
    spec: dict[str, Any] = {
        "linux": {"namespaces": [{"type": "ipc", "path": ipc}]},
        "mounts": [{"destination": "/dev/shm", "type": "tmpfs", "source": "shm"}],
    }
    bundle.join_pod(spec, {"mounts": [{"destination": "/dev/shm", "type": "bind", "source": "shm"}]})
    (mount,) = spec["mounts"]
    assert mount["type"] == kept


def test_a_pod_s_kernel_parameters_are_its_containers_too() -> None:
    spec: dict[str, Any] = {"linux": {"sysctl": {"b": "own"}, "namespaces": []}}
    bundle.join_pod(spec, {"linux": {"sysctl": {"a": "pod", "b": "pod"}}})
    assert spec["linux"] == {"sysctl": {"a": "pod", "b": "own"}, "namespaces": []}


def test_the_pod_s_files_are_mapped_as_the_container_s_are() -> None:
    ids = {"uidMappings": [{"hostID": 5, "size": 1}], "gidMappings": [{"hostID": 6, "size": 1}]}
    spec: dict[str, Any] = {"linux": {"namespaces": [], **ids}}
    file = {"destination": "/etc/hosts", "type": "bind", "source": "/pod/hosts"}
    bundle.join_pod(spec, {"mounts": [file]})
    assert spec["mounts"] == [{**file, **ids}]
