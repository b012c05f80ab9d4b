"""The namespaces of a sandbox: real ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim import errors
from shim.guest import namespaces, syscall

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes namespaces")

UIDS, GIDS = "0:1000:10,10:5000:5", "0:2000:20"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "ns"
    for path in (tmp_path / "ns").glob("*"):
        syscall.unmount(str(path))


def inside(paths: dict[str, str], *argv: str) -> str:
    joined = [f"--{kind}={path}" for kind, path in paths.items()]
    return subprocess.run(["nsenter", *joined, *argv], check=True, capture_output=True, text=True).stdout


def test_they_are_others_than_the_agent_s_who_keeps_its_own(directory: Path) -> None:
    own = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in ("ipc", "uts")}
    paths = namespaces.share(str(directory))
    assert paths.keys() == own.keys() == set(os.listdir(directory))
    for kind, name in own.items():
        assert os.readlink(f"/proc/self/ns/{kind}") == name
        assert inside(paths, "readlink", f"/proc/self/ns/{kind}").strip() != name


def test_with_ids_their_root_is_one_in_them_alone(directory: Path) -> None:
    paths = namespaces.share_with_ids(str(directory), UIDS, GIDS)
    assert paths.keys() == {"user", "ipc", "uts"}
    maps = inside(paths, "cat", "/proc/self/uid_map", "/proc/self/gid_map").split()
    assert maps == ["0", "1000", "10", "10", "5000", "5", "0", "2000", "20"]
    assert inside(paths, "sh", "-c", "hostname of-them; hostname") == "of-them\n"
    assert os.uname().nodename != "of-them"


@pytest.mark.parametrize(
    ("uids", "gids", "named"), [("0:0:5,3:9:5", GIDS, "uidMappings"), (UIDS, "0:0:1,0:5:1", "gidMappings")]
)
def test_ids_that_the_kernel_does_not_take_are_named_and_leave_nothing(
    directory: Path, uids: str, gids: str, named: str
) -> None:
    with pytest.raises(errors.InvalidArgument, match=named):
        namespaces.share_with_ids(str(directory), uids, gids)
    assert not directory.exists()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_a_failure_is_told(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_flags: int) -> None:
        raise OSError("no")

    monkeypatch.setattr(syscall, "unshare", refuse)
    with pytest.raises(errors.Internal, match="user namespace"):
        namespaces.share_with_ids(str(directory), UIDS, GIDS)
