"""Bundles on disk."""

from __future__ import annotations

from pathlib import Path

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
