"""What is left of dead shims' sandboxes, and that nothing of anybody else's is taken for it."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.cli import gc
from shim.record import Record, lock

from .conftest import Tool

LONG = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def apart(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens between the two looks."""
    events: list[Callable[[], None]] = []
    monkeypatch.setattr(gc, "_APART_S", 0.0)
    monkeypatch.setattr(gc.time, "sleep", lambda _seconds: [event() for event in events] or None)
    return events


@pytest.fixture(autouse=True)
def templates(tool: Tool) -> Path:
    """Not the host's."""
    tool.settings.write_text(f'template_dir = "{tool.folder}/templates"\n')
    return tool.folder / "templates"


@pytest.fixture
def vmm() -> Iterator[subprocess.Popen[bytes]]:
    """A process that its shim has not taken along."""
    with subprocess.Popen(["sleep", "60"]) as child:
        yield child
        child.kill()


def left_behind(tool: Tool, vmm: subprocess.Popen[bytes], name: str = "s1") -> Record:
    """A sandbox with one of everything."""
    record = tool.dead(name)
    record.add_process("hypervisor", vmm.pid)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tool.folder}/{name}.sock")
    (tool.folder / "cgroup").mkdir()
    record.add_cgroups(f"{tool.folder}/cgroup")
    return record


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_without_leftovers_there_is_nothing_to_say(tool: Tool) -> None:
    for args in (("gc",), ("gc", "--remove")):
        done = tool(*args)
        assert (done.code, done.out, done.err) == (0, "", "")
    assert tool("gc", "--json").json == []


def test_it_is_listed_and_nothing_happens_to_it(tool: Tool, vmm: subprocess.Popen[bytes]) -> None:
    record = left_behind(tool, vmm)
    long_one = tool.dead(LONG)
    long_one.address = ""
    long_one.save()
    done = tool("gc")
    assert (done.code, done.err) == (1, "")
    head, *found, last = rows(done.out)
    assert head == ["OF", "WHAT", "WHICH"] and "…" in last[0] and last[1] == "directory"
    assert [row[:3] for row in found[:1]] == [["ns/s1", "process", str(vmm.pid)]]
    assert [row[1] for row in found] == ["process", "cgroup", "socket", "directory"]
    assert max(map(len, done.out.splitlines())) <= 80
    assert vmm.poll() is None and os.path.isdir(record.run_dir)


def test_it_is_removed(tool: Tool, vmm: subprocess.Popen[bytes]) -> None:
    left_behind(tool, vmm)
    tool.dead("s2")
    ((first, second),) = [tool("gc", "--remove", "--json").json]
    assert (first["of"], second["of"], first["problems"]) == ("ns/s1", "ns/s2", [])
    assert {"what": "process", "which": f"{vmm.pid} hypervisor"} in first["left"]
    assert vmm.wait(5) == -9
    assert sorted(path.name for path in tool.folder.iterdir()) == ["config.toml"]


def test_a_directory_without_a_record_or_with_a_broken_one_is_left_too(tool: Tool) -> None:
    record = tool.dead("broken")
    Path(record.run_dir, "record.json").write_text("{}")
    os.makedirs(tool.folder / "run/ns/empty")
    assert tool("gc", "--remove").code == 0
    assert not (tool.folder / "run").exists()


def test_what_cannot_be_removed_is_told(tool: Tool, vmm: subprocess.Popen[bytes]) -> None:
    record = left_behind(tool, vmm)
    (tool.folder / "cgroup/busy").mkdir()
    done = tool("gc", "--remove")
    assert done.code == 1 and done.err == f"remove cgroup {tool.folder}/cgroup: Directory not empty\n"
    assert os.path.isdir(record.run_dir)


def test_a_sandbox_that_somebody_looks_after_is_none_of_it(tool: Tool) -> None:
    ending = tool.record("ending")  # its process lives, its socket is gone
    unrecorded = tool.dead("unrecorded")  # one that answers, whatever its record says
    starting = tool.dead("starting")
    held = lock(starting.run_dir, time.monotonic(), create=False)
    assert held is not None
    with tool.live("unrecorded"):
        done = tool("gc", "--remove")
    os.close(held)
    assert (done.code, done.out) == (0, "")
    assert all(os.path.isdir(record.run_dir) for record in (ending, unrecorded, starting))


def test_what_is_cleaned_up_or_used_again_meanwhile_is_left_alone(
    tool: Tool, apart: list[Callable[[], None]]
) -> None:
    again = tool.dead("again")
    deleted = tool.dead("deleted")
    apart += [
        lambda: tool.record("again") and None,
        lambda: gc.teardown(deleted, time.monotonic() + 1) and None,
    ]
    done = tool("gc", "--remove", "--json")
    assert done.json == [] and os.path.isdir(again.run_dir)


def test_half_made_templates_are_leftovers_while_nobody_makes_one(tool: Tool, templates: Path) -> None:
    (templates / ".new-1234").mkdir(parents=True, mode=0o700)
    templates.chmod(0o700)
    (templates / ".new-1234/memory").write_bytes(bytes(4096))
    held = gc.Store(templates, 1).lock(wait=False)
    with held:
        assert tool("gc", "--json").json == []
    (found,) = tool("gc", "--remove", "--json").json
    assert found["of"] == "templates" and found["left"][0]["which"] == f"{templates}/.new-1234"
    assert [path.name for path in templates.iterdir()] == [".lock"]
