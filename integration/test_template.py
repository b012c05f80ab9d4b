"""Sandboxes that start from a template: machines of their own, and never worse off than those that boot."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration import process
from integration.ctr import Ctr

pytestmark = pytest.mark.vm

# What may not be the same in two clones, one line each.
IDENTITY = r"""
head -c 32 /dev/urandom | sha256sum
cat /proc/sys/kernel/random/uuid
cat /proc/sys/kernel/random/boot_id
hostname
sed -n 's/ .*\[stack\]$//p' /proc/self/maps
sed -n 's/ .*\[vdso\]$//p' /proc/self/maps
"""


@pytest.fixture
def templates(ctr: Ctr, tmp_path: Path) -> Iterator[Path]:
    """A store of this test's own, empty."""
    folder = tmp_path / "templates"
    folder.mkdir(mode=0o700)
    ctr.daemon.set_for_shims(f'template = "auto"\ntemplate_dir = "{folder}"\n')
    yield folder
    ctr.daemon.set_for_shims("")
    shutil.rmtree(folder)


@pytest.fixture
def made(ctr: Ctr, templates: Path) -> Path:
    """The one template in it, a copy of the test run's."""
    ctr.daemon.set_for_shims("")
    original = json.loads(ctr.daemon.tool("template", "create", "--json"))["directory"]
    subprocess.run(["cp", "-a", "--sparse=always", original, templates], check=True)
    ctr.daemon.set_for_shims(f'template = "auto"\ntemplate_dir = "{templates}"\n')
    return templates / Path(original).name


def log_of(ctr: Ctr, act: Callable[[], object]) -> str:
    offset = ctr.daemon.log_size()
    act()
    return ctr.daemon.log_since(offset)


def test_a_sandbox_is_restored(ctr: Ctr, made: Path) -> None:
    log = log_of(ctr, lambda: ctr.run("echo", "hello").ok())
    assert "how=restored" in log and "how=boots" not in log
    assert "level=warning" not in log.replace('level=warning msg="cleaning up after shim disconnected"', "")
    (listed,) = json.loads(ctr.daemon.tool("template", "ls", "--json"))
    assert listed["key"] == made.name and listed["used"] > listed["created"]


def test_clones_share_nothing_that_should_be_their_own(ctr: Ctr, made: Path) -> None:
    seen = [ctr.run("sh", "-c", IDENTITY).ok().text.splitlines() for _ in range(3)]
    assert {len(lines) for lines in seen} == {6}, seen
    for values in zip(*seen, strict=True):
        assert len(set(values)) == len(seen), values


def test_a_clone_s_clock_is_the_host_s(ctr: Ctr, made: Path) -> None:
    time.sleep(2)
    before = time.time()
    guest = int(ctr.run("date", "+%s").ok().text)
    assert before - 1 <= guest <= time.time() + 1


def test_the_first_sandbox_boots_and_makes_the_template_of_the_second(ctr: Ctr, templates: Path) -> None:
    log = log_of(ctr, lambda: ctr.run("true").ok())
    assert "how=boots" in log and "a template is being created" in log
    deadline = time.monotonic() + 120
    while not any(templates.glob("*/template.json")) or creators(ctr):
        assert time.monotonic() < deadline, list(templates.iterdir())
        time.sleep(0.2)
    assert "how=restored" in log_of(ctr, lambda: ctr.run("true").ok())


def truncated_memory(template: Path) -> None:
    os.truncate(template / "memory", 1 << 20)


def no_memory(template: Path) -> None:
    (template / "memory").unlink()


def no_description(template: Path) -> None:
    (template / "template.json").write_text("{")


def refused_state(template: Path) -> None:
    data = (template / "state").read_bytes()
    (template / "state").write_bytes(data[:5000] + bytes(len(data) - 5000))


def empty_memory(template: Path) -> None:
    size = (template / "memory").stat().st_size
    os.truncate(template / "memory", 0)
    os.truncate(template / "memory", size)


@pytest.mark.parametrize(
    "break_it", [truncated_memory, no_memory, no_description, refused_state, empty_memory]
)
def test_a_broken_template_is_removed_and_the_vm_boots(
    ctr: Ctr, made: Path, break_it: Callable[[Path], None]
) -> None:
    break_it(made)
    log = log_of(ctr, lambda: ctr.run("echo", "hello").ok())
    assert "how=boots" in log
    assert len([line for line in log.splitlines() if "template" in line and "level=warning" in line]) == 1
    wait_for(lambda: not creators(ctr))
    if made.exists():  # made anew, whole
        assert "how=restored" in log_of(ctr, lambda: ctr.run("true").ok())


def test_two_creators_make_one_template(ctr: Ctr, templates: Path) -> None:
    both = [creator(ctr) for _ in range(2)]
    keys = [child.communicate(timeout=120)[0].strip() for child in both]
    assert keys[0] == keys[1] and [child.returncode for child in both] == [0, 0]
    assert [path.name for path in templates.iterdir() if not path.name.startswith(".")] == [keys[0]]


def test_a_creator_that_is_killed_does_no_harm(ctr: Ctr, templates: Path) -> None:
    child = creator(ctr)
    wait_for(lambda: any(item.role == "qemu" for item in process.descendants({child.pid}).values()))
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=10)
    wait_for(lambda: not creators(ctr))
    key = ctr.daemon.tool("template", "create").strip()
    assert sorted(path.name for path in templates.iterdir()) == [".lock", key]
    assert "how=restored" in log_of(ctr, lambda: ctr.run("true").ok())


def test_off_means_boot(ctr: Ctr, made: Path) -> None:
    ctr.daemon.set_for_shims(f'template = "off"\ntemplate_dir = "{made.parent}"\n')
    assert "how=boots" in log_of(ctr, lambda: ctr.run("true").ok())


def creator(ctr: Ctr) -> subprocess.Popen[str]:
    command = [str(ctr.daemon.shims / "kata-py"), "template", "create"]
    return subprocess.Popen(command, env=ctr.daemon.env, stdout=subprocess.PIPE, text=True)


def creators(ctr: Ctr) -> list[str]:
    """The processes that make a template now."""
    everything = process.marked(str(ctr.daemon.root)).values()
    words = ("template create", "sandbox-template-")
    return [item.command for item in everything if any(word in item.command for word in words)]


def wait_for(condition: Callable[[], bool], timeout: float = 120) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
