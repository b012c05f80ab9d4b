"""Every call of the Task service in every state of a real container; tests/task/rpc_table.py is the table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from integration.conftest import OURS
from integration.ctr import Ctr
from integration.exec import shim_service
from integration.ttrpc import Task
from tests.task.rpc_table import Walk


@pytest.mark.short
def test_every_call_gives_in_every_state_what_the_table_says(ctr: Ctr, box: str, tmp_path: Path) -> None:
    if ctr.runtime != OURS and ctr.daemon.version != "1.6":
        pytest.skip("runc's shim panics when the init of a container ends after a Start was refused")
    (tmp_path / "root/bin").mkdir(parents=True)
    (tmp_path / "root/bin/sleep").write_bytes(ctr.exec(box, "cat", "/bin/busybox").ok().out)
    (tmp_path / "root/bin/sleep").chmod(0o755)
    spec = json.loads((ctr.daemon.bundles / box / "config.json").read_text())
    spec["process"]["args"] = ["sleep", "1000"]
    spec["root"]["path"] = str(tmp_path / "root")
    spec["linux"]["cgroupsPath"] = f"/{ctr.daemon.namespace}/{box}-walk"
    (tmp_path / "config.json").write_text(json.dumps(spec))

    def connect(timeout_s: float) -> Task:
        return Task(ctr.daemon.shim_address(box), timeout_s, shim_service(ctr))

    walk = Walk(connect, f"{box}-walk", str(tmp_path), runc=ctr.runtime != OURS)
    wrong = walk.all()
    assert not wrong, "\n".join(wrong)
