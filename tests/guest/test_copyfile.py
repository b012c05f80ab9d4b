"""Files from the host, piece by piece, and links that a container has laid."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from shim import errors
from shim.guest.copyfile import copy_file

FILE, DIRECTORY, LINK = stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK
DATA = os.urandom(5000)


class Shared:
    """The directory. Files in it are root's to give away, so tests that do not run as root keep their own ids."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def copy(self, path: str, mode: int, data: bytes = b"", /, **fields: Any) -> None:
        request = {"path": f"{self.root}/{path}", "file_mode": mode, "dir_mode": 0o755, "data": data}
        request |= {"file_size": len(data), "uid": os.getuid(), "gid": os.getgid()} | fields
        copy_file(request, str(self.root))

    def mode(self, path: str) -> int:
        return stat.S_IMODE((self.root / path).lstat().st_mode)


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared(tmp_path / "containers")


def test_a_file_comes_in_pieces_and_takes_its_place_when_it_is_whole(shared: Shared) -> None:
    for at in range(0, 5000, 2000):
        assert not (shared.root / "a/b/file").exists()
        shared.copy("a/b/file", FILE | 0o4751, DATA[at : at + 2000], offset=at, file_size=5000)
    assert (shared.root / "a/b/file").read_bytes() == DATA
    assert shared.mode("a/b/file") == 0o4751
    assert (shared.mode("a"), shared.mode("a/b")) == (0o755, 0o755)
    assert os.listdir(shared.root / "a/b") == ["file"]


def test_a_file_is_replaced_at_once_and_an_empty_one_is_one(shared: Shared) -> None:
    shared.copy("file", FILE | 0o600, b"old")
    shared.copy("file", FILE | 0o644, DATA[:10], file_size=20)
    assert (shared.root / "file").read_bytes() == b"old"
    shared.copy("file", FILE | 0o644, DATA[10:20], offset=10, file_size=20)
    assert (shared.root / "file").read_bytes() == DATA[:20]
    shared.copy("file", FILE | 0o644)
    assert (shared.root / "file").read_bytes() == b""


def test_a_directory_keeps_its_content_and_gets_its_mode(shared: Shared) -> None:
    shared.copy("dir", DIRECTORY | 0o700)
    shared.copy("dir/file", FILE | 0o644, b"x")
    shared.copy("dir", DIRECTORY | 0o2775)
    assert shared.mode("dir") == 0o2775
    assert (shared.root / "dir/file").read_bytes() == b"x"


def test_a_link_is_made_and_made_anew(shared: Shared) -> None:
    for target in (b"..data/file", b"/elsewhere"):
        shared.copy("link", LINK | 0o777, target)
        assert os.readlink(shared.root / "link") == target.decode()


@pytest.mark.parametrize("first", [FILE, DIRECTORY, LINK])
@pytest.mark.parametrize("second", [FILE, DIRECTORY, LINK])
def test_what_is_of_another_kind_is_replaced(shared: Shared, first: int, second: int) -> None:
    shared.copy("x", first | 0o755, b"first")
    if first == DIRECTORY:
        shared.copy("x/inside", FILE | 0o644, b"x")
    shared.copy("x", second | 0o755, b"second")
    assert stat.S_IFMT((shared.root / "x").lstat().st_mode) == second


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_owners_are_those_that_are_asked_for(shared: Shared) -> None:
    for name, mode in (("d", DIRECTORY), ("l", LINK), ("f", FILE | 0o6755)):
        shared.copy(f"made/{name}", mode, b"x", uid=1234, gid=-1)
        status = (shared.root / "made" / name).lstat()
        assert (status.st_uid, status.st_gid) == (1234, 0)
    assert shared.mode("made/f") == 0o6755
    assert (shared.root / "made").stat().st_uid == 1234


@pytest.mark.parametrize("link", ["../outside", "/", "."])
def test_no_link_leads_elsewhere(shared: Shared, tmp_path: Path, link: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shared.copy("a", DIRECTORY | 0o755)
    os.symlink(link, shared.root / "a/way")
    for mode in (FILE, DIRECTORY, LINK):
        with pytest.raises(errors.FailedPrecondition):
            shared.copy("a/way/in", mode | 0o755, b"x")
    assert os.listdir(outside) == []
    (outside / "file").write_bytes(b"untouched")
    os.symlink(outside / "file", shared.root / "a/file")
    shared.copy("a/file", FILE | 0o644, b"mine")
    assert (outside / "file").read_bytes() == b"untouched"
    assert (shared.root / "a/file").read_bytes() == b"mine"


@pytest.mark.parametrize("trap", ["fifo", "link", "directory"])
def test_a_trap_in_the_place_of_a_growing_file_is_found(shared: Shared, tmp_path: Path, trap: str) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    shared.copy("file", FILE | 0o644, DATA[:10], file_size=20)
    (growing,) = shared.root.iterdir()
    for offset in (10, 0):
        if growing.is_file() and not growing.is_symlink():
            growing.unlink()
        if not growing.exists():
            {"fifo": os.mkfifo, "link": lambda at: os.symlink(victim, at), "directory": os.mkdir}[trap](
                growing
            )
        if offset:
            with pytest.raises(errors.ShimError):
                shared.copy("file", FILE | 0o644, DATA[10:20], offset=offset, file_size=20)
        else:
            shared.copy("file", FILE | 0o644, DATA)
    assert (shared.root / "file").read_bytes() == DATA
    assert victim.read_bytes() == b"untouched"


@pytest.mark.parametrize(
    "fields",
    [
        {"path": ""},
        {"path": "/etc/passwd"},
        {"path": "{root}"},
        {"path": "{root}/../x"},
        {"path": "{root}x/y"},
        {"path": "{root}/a\0b"},
        {"offset": -1},
        {"offset": 1},
        {"file_size": 3},
        {"uid": -2},
        {"file_mode": stat.S_IFCHR | 0o644},
        {"file_mode": stat.S_IFIFO | 0o644},
    ],
    ids=str,
)
def test_nonsense_is_refused_and_leaves_nothing(
    shared: Shared, tmp_path: Path, fields: dict[str, Any]
) -> None:
    if "path" in fields:
        fields = {"path": fields["path"].format(root=shared.root)}
    with pytest.raises(errors.InvalidArgument):
        shared.copy("x", FILE | 0o644, b"four", **{"file_size": 4} | fields)
    assert not shared.root.exists() or os.listdir(shared.root) == []
    assert set(os.listdir(tmp_path)) <= {"containers", "cgroup"}
