"""A host with sandboxes on disk, and `kata-py` called in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shim.cli import sandboxes
from shim.cli.main import main
from shim.pb.kata_py import introspect as pb
from shim.record import Record, place
from tests.fakes.shim import FakeShim

UP = pb.SandboxResponse(
    version="0.1.0",
    state="up",
    origin="template",
    up_s=0.25,
    memory_mib=256,
    vcpus=2,
    containers=[
        pb.Container(
            id="c1",
            bundle="/b/c1",
            processes=[
                pb.Process("", "running", [pb.Stream("stdout", 12345, 0, 7), pb.Stream("stdin", 0, 5, 0)]),
                pb.Process("e1", "stopped"),
            ],
        ),
        pb.Container(id="c2", processes=[pb.Process("", "created")]),
    ],
    settings=[
        pb.Setting("memory_mib", "256", ""),
        pb.Setting("debug_console", "false", "/etc/x.toml"),
        pb.Setting("kernel_params", '["a=1"]', "annotation x"),
        pb.Setting("debug_console_vport", "1026", ""),
    ],
)


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


class Tool:
    """`tool("ps", "--json")` on a host of its own, with sandboxes that a test makes."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self._monkeypatch, self._capsys = folder, monkeypatch, capsys
        self.settings = folder / "config.toml"
        self.settings.write_text("")
        monkeypatch.setattr(place, "RUN_DIR", str(folder / "run"))
        monkeypatch.setattr(sandboxes, "TIMEOUT_S", 30.0)  # all but the hung answer, when they get a CPU
        monkeypatch.setenv("KATA_PY_CONFIG", str(self.settings))
        monkeypatch.delenv("KATA_PY_CONFIG_BODY", raising=False)

    def __call__(self, *args: str) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["kata-py", *args])
        self._capsys.readouterr()
        code = main()
        said = self._capsys.readouterr()
        return Done(code, said.out, said.err)

    def record(self, sandbox: str = "s1", namespace: str = "ns", pid: int | None = None) -> Record:
        """A sandbox on disk whose shim is this process, or the child that `pid` is."""
        record = Record.create(namespace, sandbox, f"unix://{self.folder}/{sandbox}.sock")
        record.add_process("daemon", pid or os.getpid())
        return record

    def live(self, sandbox: str = "s1", response: pb.SandboxResponse = UP) -> FakeShim:
        return FakeShim(self.folder / f"{sandbox}.sock", response)

    def dead(self, sandbox: str, namespace: str = "ns") -> Record:
        """A sandbox whose shim has ended."""
        with subprocess.Popen(["sleep", "100"]) as child:
            record = self.record(sandbox, namespace, child.pid)
            record.set_container(sandbox, 4711)
            child.kill()
        return record


@pytest.fixture
def tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Tool]:
    yield Tool(tmp_path, monkeypatch, capsys)
