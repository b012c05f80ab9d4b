from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from shim import errors
from shim.guest import hotplug

from .loop import go


def devices(directory: Path, kind: str, states: dict[int, str]) -> str:
    for number, state in states.items():
        (directory / f"{kind}{number}").mkdir(parents=True)
        if state:
            (directory / f"{kind}{number}" / "online").write_text(state)
    (directory / f"{kind}freq").mkdir()
    return str(directory)


def on(directory: Path) -> list[str]:
    return sorted(path.parent.name for path in directory.glob("*/online") if path.read_text().strip() == "1")


def test_cpus_are_switched_on_until_there_are_enough(tmp_path: Path) -> None:
    async def test() -> None:
        cpus = devices(tmp_path, "cpu", {0: "", 1: "0\n", 2: "1\n", 3: "0\n", 10: "0\n"})
        (tmp_path / "online").write_text("0,2\n")
        await hotplug.use_cpus(2, cpus)
        assert on(tmp_path) == ["cpu2"]
        await hotplug.use_cpus(3, cpus)
        assert on(tmp_path) == ["cpu1", "cpu2"]

    go(test)


def test_the_agent_goes_on_while_a_cpu_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    going_on = threading.Event()
    monkeypatch.setattr(hotplug, "_switch_on", lambda *_: int(going_on.wait(10)))

    async def test() -> None:
        (tmp_path / "online").write_text("0\n")
        starting = asyncio.create_task(hotplug.use_cpus(2, str(tmp_path), limit_s=0))
        while not starting.done():
            await asyncio.sleep(0)
            going_on.set()
        await starting

    go(test)


def test_cpus_that_are_not_there_are_a_deadline(tmp_path: Path) -> None:
    async def test() -> None:
        cpus = devices(tmp_path, "cpu", {0: ""})
        (tmp_path / "online").write_text("0-3,5\n")
        await hotplug.use_cpus(5, cpus)
        with pytest.raises(errors.DeadlineExceeded, match="5 of 6 CPUs"):
            await hotplug.use_cpus(6, cpus, limit_s=0)

    go(test)


def test_all_memory_is_switched_on(tmp_path: Path) -> None:
    hotplug.use_memory(devices(tmp_path, "memory", {0: "1", 32: "0", 33: "0"}))
    assert on(tmp_path) == ["memory0", "memory32", "memory33"]
    hotplug.use_memory(str(tmp_path / "a kernel without memory hotplug"))
