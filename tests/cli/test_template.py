"""`kata-py template` as a user calls it; what makes a VM is not among these tests."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from shim.hypervisor.api import Fingerprint
from shim.template.store import Store, inputs

PROGRAM = Path(__file__).resolve().parents[2] / "cmd" / "kata-py"


class Host:
    """Settings with a store of two templates; `run` is the program."""

    def __init__(self, folder: Path) -> None:
        self.settings = folder / "config.toml"
        self.settings.write_text(f'template_dir = "{folder}/templates"\n')
        self.store = Store(folder / "templates", 10)
        self.folder = folder

    def make(self, name: str) -> str:
        (self.folder / name).write_text(name)
        made_of = inputs(Fingerprint(("x",), (self.folder / name,)))
        with self.store.lock(wait=False), self.store.new(made_of, 256, 1) as snapshot:
            snapshot.memory.write_bytes(b"m" * (2 << 20))
            snapshot.state.write_bytes(b"s")
        return made_of.key

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        environment = {"KATA_PY_CONFIG": str(self.settings), "PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        return subprocess.run(
            [PROGRAM, "template", *args], env=environment, capture_output=True, text=True, check=False
        )


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_ls_is_a_table_of_80_columns(host: Host) -> None:
    keys = {host.make("a"), host.make("b")}
    done = host.run("ls")
    head, *rows = done.stdout.splitlines()
    assert done.returncode == 0 and head.split()[:3] == ["KEY", "MEMORY", "CPUS"]
    assert {row.split()[0] for row in rows} == keys
    assert all("256 MiB" in row and "2 MiB" in row for row in rows)
    assert max(len(line) for line in [head, *rows]) <= 80


def test_ls_can_be_json(host: Host) -> None:
    assert json.loads(host.run("ls", "--json").stdout) == []
    key = host.make("a")
    (found,) = json.loads(host.run("ls", "--json").stdout)
    assert found["key"] == key and found["memory_mib"] == 256 and found["files"] == [str(host.folder / "a")]


def test_rm_takes_keys_and_what_they_begin_with(host: Host) -> None:
    keys = [host.make("a"), host.make("b")]
    assert host.run("rm", keys[0][:8]).stdout.split() == [keys[0]]
    assert [item.key for item in host.store.all()] == [keys[1]]
    assert host.run("rm", keys[1]).returncode == 0
    assert host.store.all() == []


def test_rm_all_removes_all(host: Host) -> None:
    keys = {host.make("a"), host.make("b")}
    assert set(host.run("rm", "--all").stdout.split()) == keys
    assert host.store.all() == []


@pytest.mark.parametrize(
    ("args", "said", "code"),
    [
        (("rm",), "which one", 2),
        (("rm", "nothing"), "template 'nothing': there is none", 1),
        (("rm", ""), "there is none", 1),
        (("rm", "../x"), "there is none", 1),
        (("frobnicate",), "No such command", 2),
    ],
)
def test_a_mistake_is_told_in_a_line_and_removes_nothing(
    host: Host, args: tuple[str, ...], said: str, code: int
) -> None:
    key = host.make("a")
    done = host.run(*args)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr
    assert [item.key for item in host.store.all()] == [key]


def test_create_names_what_is_missing(host: Host) -> None:
    host.settings.write_text(f'template_dir = "{host.folder}/templates"\nkernel = "/no/kernel"\n')
    done = host.run("create")
    assert done.returncode == 1
    assert done.stderr.startswith("kata-py: /no/kernel") or "not found" in done.stderr


def test_a_wrong_setting_is_a_line(host: Host) -> None:
    host.settings.write_text("template = 'maybe'")
    done = host.run("ls")
    assert done.returncode == 1 and "want one of auto, off" in done.stderr
