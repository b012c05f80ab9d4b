"""Both command lines of virtiofsd."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.errors import NotFound
from shim.rootfs.virtiofsd import arguments, find


def test_the_rust_daemon_takes_long_options() -> None:
    assert arguments(is_rust=True, shared_dir=Path("/run/x/share"), fd=7)[:3] == [
        "--fd=7",
        "--shared-dir=/run/x/share",
        "--sandbox=namespace",
    ]


def test_the_c_daemon_takes_one_list() -> None:
    assert arguments(is_rust=False, shared_dir=Path("/run/x/share"), fd=7) == [
        "--fd=7",
        "-f",
        "-o",
        "source=/run/x/share,sandbox=namespace,cache=auto,xattr,log_level=warn",
    ]


def test_a_setting_is_the_only_place_looked_at(tmp_path: Path) -> None:
    program = tmp_path / "virtiofsd"
    with pytest.raises(NotFound, match=str(program)):
        find(str(program))
    program.touch(mode=0o755)
    assert find(str(program)) == str(program)
