from __future__ import annotations

import ctypes
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.guest import cgroup, syscall

_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture
def subreaper() -> Iterator[None]:
    """This process adopts orphans, as pid 1 of a VM does."""
    syscall.set_subreaper()
    yield
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def crun(tmp_path: Path, subreaper: None) -> str:
    """The path of a fake crun with a state of its own."""
    program = tmp_path / "crun"
    shutil.copy(Path(__file__).with_name("fake_crun.py"), program)
    program.chmod(0o755)
    return str(program)


@pytest.fixture(autouse=True)
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in the place of the cgroup file system."""
    root = tmp_path / "cgroup"
    root.mkdir()
    monkeypatch.setattr(cgroup, "ROOT", str(root))
    return root
