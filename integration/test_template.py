"""Sandboxes that start from a template: machines of their own, and never worse off than those that boot."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration import process
from integration.ctr import Ctr

pytestmark = [pytest.mark.vm, pytest.mark.once]

# 32 random bytes, then three lines, then where a program's memory lies.
IDENTITY = """
head -c 32 /dev/urandom
cd /proc/sys/kernel
exec cat random/uuid random/boot_id hostname /proc/self/maps
"""
CLONES, AT_ONCE = 100, 4


@pytest.fixture
def templates(ctr: Ctr, tmp_path: Path) -> Iterator[Path]:
    """A store of this test's own, empty and in memory; the one of the whole test run is on a disk."""
    folder = tmp_path / "templates"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=0700", "templates", folder], check=True)
    ctr.daemon.set_for_shims(f'template = "auto"\ntemplate_dir = "{folder}"\n')
    yield folder
    ctr.daemon.set_for_shims("")
    subprocess.run(["umount", "--lazy", folder], check=True)


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


def test_a_hundred_clones_answer_share_nothing_and_leave_nothing(ctr: Ctr, made: Path) -> None:
    running = ctr.detached("sleep", "1000", options=["--null-io"])
    assert guest_memories(ctr)  # or it could not see any that is left
    ctr.remove(running)
    files = sorted((path.name, path.stat().st_ino) for path in made.parent.rglob("*"))

    def restored(_number: int) -> tuple[object, ...]:
        return identity(ctr.run("sh", "-c", IDENTITY).ok().out)

    offset = ctr.daemon.log_size()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        seen = list(pool.map(restored, range(CLONES)))
    assert ctr.daemon.log_since(offset).count("how=restored") == CLONES
    for values in zip(*seen, strict=True):
        assert len(set(values)) == CLONES, values
    wait_for(lambda: not guest_memories(ctr), timeout=10)
    assert sorted((path.name, path.stat().st_ino) for path in made.parent.rglob("*")) == files


def identity(out: bytes) -> tuple[object, ...]:
    """What may not be the same in two clones: random bytes, uuid, boot_id, hostname, and the program's layout."""
    random, (uuid, boot_id, hostname, *maps) = out[:32], out[32:].decode().splitlines()
    places = {line.split()[-1]: line.split("-")[0] for line in maps}
    assert len(random) == 32 and len(uuid) == len(boot_id) == 36 and hostname
    # Together: the stack alone has 22 random bits, and two of a hundred would be the same once in a thousand runs.
    return random, uuid, boot_id, hostname, (places["[stack]"], places["[vdso]"], places["[heap]"])


def guest_memories(ctr: Ctr) -> list[str]:
    """The memories of VMs of this test run, by who has them open or mapped."""
    found = []
    for item in process.marked(str(ctr.daemon.root)).values():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            links = [os.readlink(path) for path in Path(f"/proc/{item.pid}/fd").iterdir()]
            if any("guest-memory" in text for text in (*links, Path(f"/proc/{item.pid}/maps").read_text())):
                found.append(f"{item.pid} {item.command}")
    return found


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


@pytest.mark.parametrize("ends", [False, True], ids=["missing", "ends"])
def test_a_restore_that_fails_over_something_else_costs_no_template(
    ctr: Ctr, made: Path, tmp_path: Path, ends: bool
) -> None:
    program = tmp_path / "virtiofsd"
    if ends:
        program.write_text(
            "#!/bin/sh\ncase $1 in --version) echo virtiofsd 1.0;; *) echo no luck >&2; exit 7;; esac\n"
        )
        program.chmod(0o755)
    settings = f'template = "auto"\ntemplate_dir = "{made.parent}"\n'
    ctr.daemon.set_for_shims(f'{settings}virtiofsd = "{program}"\n')
    failed = ctr.run("true")
    assert failed.code != 0
    assert ("no luck" if ends else f"program not found: {program}") in failed.err
    assert sorted(path.name for path in made.parent.iterdir()) == [made.name]
    ctr.daemon.set_for_shims(settings)
    assert "how=restored" in log_of(ctr, lambda: ctr.run("true").ok())


def test_another_size_boots_and_then_has_a_template_of_its_own(ctr: Ctr, made: Path) -> None:
    settings = f'template = "auto"\ntemplate_dir = "{made.parent}"\nvcpus = 2\n'
    ctr.daemon.set_for_shims(f"{settings}memory_mib = 1536")
    for how in ("boots", "restored"):
        assert f"how={how}" in log_of(ctr, lambda: assert_size(ctr, cpus=2, memory_mib=1536))
        wait_for(lambda: not creators(ctr))
    assert len(list(made.parent.glob("*/template.json"))) == 2
    # The limit is for all together: those used longest ago go.
    ctr.daemon.set_for_shims(f"{settings}memory_mib = 144\ntemplate_limit_mib = 150")
    ctr.daemon.tool("template", "create")
    sizes = [item["memory_mib"] for item in json.loads(ctr.daemon.tool("template", "ls", "--json"))]
    assert sizes == [144]


def test_limits_are_plugged_in_where_no_template_has_them(ctr: Ctr, made: Path) -> None:
    """A template of one CPU does until there is one of two; memory is always plugged in."""
    limits = ["--memory-limit", str(400 << 20), "--cpu-quota", "200000", "--cpu-period", "100000"]
    shown = ["sh", "-c", "nproc; grep MemTotal /proc/meminfo"]
    for before in (1, 2):
        assert len(list(made.parent.glob("*/template.json"))) == before
        log = log_of(ctr, lambda: check_grown(ctr.run(*shown, options=["--rm", *limits]).ok().text))
        assert "how=restored" in log and f'before="256 MiB and {before} CPUs" now="768 MiB and 2 CPUs"' in log
        wait_for(lambda: not creators(ctr))


def check_grown(text: str) -> None:
    cpus, _, kib, _ = text.split()
    assert cpus == "2" and 700 << 10 < int(kib) < 768 << 10


def assert_size(ctr: Ctr, *, cpus: int, memory_mib: int) -> None:
    """AssertionError unless a guest has so many CPUs, all at work, and nearly as much memory."""
    script = "nproc; grep MemTotal /proc/meminfo; grep -c ^cpu[0-9] /proc/stat"
    seen = ctr.run("sh", "-c", script).ok().text.split()
    assert seen[0] == seen[-1] == str(cpus)
    assert memory_mib * 0.7 < int(seen[2]) / 1024 <= memory_mib


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
