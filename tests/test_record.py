"""The record on disk and the teardown that works from it alone."""

import importlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim import record
from shim.errors import DataLoss, DeadlineExceeded, InvalidArgument, NotFound
from shim.record import LOGGER, Process, Record, exiting, left, lock, place, sandbox_dir, teardown
from shim.record.removal import mounts_below, remove_tree, unmount

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
Spawn = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(place, "RUN_DIR", str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """A process that stays until it is killed."""
    children: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        children.append(subprocess.Popen(["sleep", "60"]))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


def soon() -> float:
    return time.monotonic() + 5


# -- where ---------------------------------------------------------------------------------------------------


def test_a_sandbox_has_its_directory_by_namespace_and_id(run: Path) -> None:
    assert sandbox_dir("k8s.io", "c1") == f"{run}/k8s.io/c1"


def test_a_directory_is_short_enough_for_sockets_and_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "RUN_DIR", "/run/kata-py")
    pod = "f" * 64
    assert sandbox_dir("k8s.io", pod) == f"/run/kata-py/k8s.io/{pod}"
    paths = {sandbox_dir(namespace, id * 76) for namespace in ("a" * 76, "b" * 76) for id in "cd"}
    assert len(paths) == 4
    assert all(len(f"{path}/a-name-of-20-letters") <= 107 for path in paths)


@pytest.mark.parametrize("bad", ["", ".", "..", "../x", "a/b", "-x", ".x", "a\0b", "ä", "a b", "x" * 256])
def test_an_id_that_is_no_file_name_is_refused(bad: str) -> None:
    with pytest.raises(InvalidArgument, match="sandbox id"):
        sandbox_dir("default", bad)
    with pytest.raises(InvalidArgument, match="namespace"):
        sandbox_dir(bad, "c1")


# -- the lock ------------------------------------------------------------------------------------------------


def test_a_lock_excludes_others_until_it_is_closed(run: Path) -> None:
    path = sandbox_dir("default", "c1")
    first = lock(path, soon(), create=True)
    assert first is not None and run.joinpath("default/c1").stat().st_mode & 0o777 == 0o700
    with pytest.raises(DeadlineExceeded, match="holds its lock"):
        lock(path, time.monotonic(), create=True)
    os.close(first)
    second = lock(path, time.monotonic(), create=False)
    assert second is not None
    os.close(second)


def test_a_lock_of_nothing_is_none_unless_it_may_create() -> None:
    assert lock(sandbox_dir("default", "c1"), soon(), create=False) is None


def test_a_lock_on_a_directory_that_was_removed_meanwhile_is_worth_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = sandbox_dir("default", "c1")
    flock = place.fcntl.flock
    calls = []

    def remove_first(fd: int, how: int) -> None:
        flock(fd, how)
        if not calls:
            os.rmdir(path)
        calls.append(fd)

    monkeypatch.setattr(place.fcntl, "flock", remove_first)
    fd = lock(path, soon(), create=True)
    assert fd is not None and len(calls) == 2
    assert os.path.samestat(os.fstat(fd), os.stat(path))
    os.close(fd)


# -- the file ------------------------------------------------------------------------------------------------


def test_every_change_is_on_disk_at_once(run: Path, spawn: Spawn) -> None:
    written = Record.create("default", "c1", "unix:///run/s/abc")
    child = spawn()
    written.add_process("hypervisor", child.pid)
    written.add_cgroups("/g/1", "/g/2")
    written.add_cgroups("/g/1")
    written.set_container("c1", 77)
    written.set_container("c2", 78)
    written.forget_container("c2")
    read = Record.load(f"{run}/default/c1")
    assert (read.namespace, read.sandbox_id, read.address) == ("default", "c1", "unix:///run/s/abc")
    assert [(p.role, p.pid, p.alive()) for p in read.processes] == [("hypervisor", child.pid, True)]
    assert (read.cgroups, read.socket) == (["/g/1", "/g/2"], "/run/s/abc")
    assert read.containers == {"c1": 77}
    written.forget_process(child.pid)
    written.forget_cgroups()
    read = Record.load(f"{run}/default/c1")
    assert (read.processes, read.cgroups) == ([], [])
    assert run.joinpath("default/c1/record.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(run / "default/c1") == ["record.json"]


def test_a_process_that_is_not_there_cannot_be_recorded(spawn: Spawn) -> None:
    child = spawn()
    child.kill()
    child.wait()
    with pytest.raises(NotFound, match=f"vmm: no process {child.pid}"):
        Record.create("default", "c1", "").add_process("vmm", child.pid)


@pytest.mark.parametrize("path", ["relative", "", "/a/../b"])
def test_a_path_that_could_mean_another_place_is_refused(path: str) -> None:
    written = Record.create("default", "c1", "")
    with pytest.raises(InvalidArgument):
        written.add_cgroups(path)


def test_no_record_is_not_found() -> None:
    with pytest.raises(NotFound):
        Record.load(sandbox_dir("default", "c1"))


def full_record() -> bytes:
    written = Record.create("default", "c1", "unix:///run/s/abc")
    written.add_process("daemon", os.getpid())
    written.add_cgroups("/m")
    written.set_container("c1", 77)
    return Path(written.run_dir, "record.json").read_bytes()


def test_a_torn_record_is_data_loss_wherever_it_is_torn(run: Path) -> None:
    whole = full_record()
    for length in range(len(whole)):
        run.joinpath("default/c1/record.json").write_bytes(whole[:length])
        with pytest.raises(DataLoss):
            Record.load(f"{run}/default/c1")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"pid": %d' % os.getpid(), b'"pid": 0'),
        (b'"pid": %d' % os.getpid(), b'"pid": 1'),
        (b'"pid": %d' % os.getpid(), b'"pid": -1'),
        (b'"pid": %d' % os.getpid(), b'"pid": true'),
        (b'"pid": %d' % os.getpid(), b'"pid": "7"'),
        (b'"pid": %d' % os.getpid(), b'"pid": 99999999999999999999'),
        (b'"role": "daemon"', b'"role": 5'),
        (b'"/m"', b'"m"'),
        (b'"/m"', b'"/../etc"'),
        (b'"/m"', b"null"),
        (b'"c1": 77', b'"c1": null'),
        (b'"unix:///run/s/abc"', b"[]"),
        (b'"unix:///run/s/abc"', b'"unix://run/s/abc"'),
        (b"{", b"["),
        (b"default", b"\xff"),
    ],
)
def test_a_record_of_the_wrong_shape_is_data_loss(run: Path, old: bytes, new: bytes) -> None:
    whole = full_record()
    assert old in whole
    run.joinpath("default/c1/record.json").write_bytes(whole.replace(old, new))
    with pytest.raises(DataLoss):
        Record.load(f"{run}/default/c1")


# -- processes -----------------------------------------------------------------------------------------------


def test_a_pid_given_to_somebody_else_is_not_ours(spawn: Spawn) -> None:
    child = spawn()
    ours = Process.find("vmm", child.pid)
    other = Process("vmm", child.pid, ours.start_time - 1)
    assert ours.alive() and not other.alive()
    assert other.wait_gone(soon())
    other.kill()
    assert not ours.wait_gone(time.monotonic() + 0.01)


def test_a_zombie_does_not_count_as_alive(spawn: Spawn) -> None:
    child = spawn()
    process = Process.find("vmm", child.pid)
    process.kill()
    assert process.wait_gone(soon())
    assert child.poll() is not None or not process.alive()


def test_a_process_that_ends_says_so(spawn: Spawn) -> None:
    child = spawn()
    assert not exiting(child.pid)
    child.kill()
    while Process.find("x", child.pid).alive():
        time.sleep(0.001)
    assert exiting(child.pid), "not reaped yet"
    child.wait()
    assert exiting(child.pid)


def test_a_name_full_of_parentheses_does_not_hide_the_start_time(tmp_path: Path) -> None:
    program = tmp_path / ") S 1 (2"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "60"]) as child:
        assert Process.find("x", child.pid).alive()
        child.kill()


# -- teardown ------------------------------------------------------------------------------------------------


def test_teardown_removes_all_that_is_recorded_and_can_be_done_twice(
    run: Path, tmp_path: Path, spawn: Spawn
) -> None:
    import socket

    written = Record.create("default", "c1", f"unix://{tmp_path}/sock")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"{tmp_path}/sock")
    children = [spawn(), spawn()]
    for child in children:
        written.add_process("vmm", child.pid)
    cgroup = tmp_path / "cgroup"
    cgroup.mkdir()
    written.add_cgroups(str(cgroup), f"{tmp_path}/never made")
    run.joinpath("default/c1/share/c1").mkdir(parents=True)
    assert left(written) == [
        *(("process", f"{child.pid} vmm") for child in children),
        ("cgroup", str(cgroup)),
        ("socket", f"{tmp_path}/sock"),
        ("directory", written.run_dir),
    ]
    assert teardown(Record.load(written.run_dir), soon()) == []
    assert [child.wait(5) for child in children] == [-9, -9]
    assert not any(path.exists() for path in (cgroup, tmp_path / "sock", run))
    assert teardown(written, soon()) == []
    assert left(written) == [("directory", written.run_dir)]


def test_a_logger_may_read_its_input_to_the_end_but_not_for_ever(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the device, which is killed, is the end of what a logger reads."""
    monkeypatch.setattr(importlib.import_module("shim.record.teardown"), "_FLUSH_S", 1)
    written = Record.create("default", "c1", "")
    device = subprocess.Popen(["sh", "-c", "echo all of it; exec sleep 60"], stdout=subprocess.PIPE)
    out = run.parent / "out"
    with out.open("wb") as file:
        reads = subprocess.Popen(["cat"], stdin=device.stdout, stdout=file)
    assert device.stdout
    device.stdout.close()
    stays = subprocess.Popen(["sleep", "60"])
    for role, child in ((LOGGER, reads), ("vsock device", device), (LOGGER, stays)):
        written.add_process(role, child.pid)
    reaper = threading.Thread(target=reads.wait)  # a zombie's end is not seen by its pidfd alone
    reaper.start()
    while not out.stat().st_size:  # or the device would be killed before it has written
        time.sleep(0.001)
    assert teardown(Record.load(written.run_dir), soon()) == []
    reaper.join()
    assert (device.wait(5), reads.returncode, stays.wait(5)) == (-9, 0, -9)
    assert out.read_bytes() == b"all of it\n"


def test_teardown_leaves_other_sandboxes_alone(run: Path) -> None:
    Record.create("default", "c1", "")
    assert teardown(Record.create("default", "c2", ""), soon()) == []
    assert run.joinpath("default/c1/record.json").exists()


def test_teardown_spares_the_process_that_runs_it() -> None:
    written = Record.create("default", "c1", "")
    written.add_process("daemon", os.getpid())
    assert teardown(written, soon()) == []


def test_what_cannot_be_removed_is_told_and_the_record_stays(tmp_path: Path) -> None:
    written = Record.create("default", "c1", "")
    tmp_path.joinpath("no cgroup").touch()
    written.add_cgroups(str(tmp_path))
    problems = teardown(written, soon())
    assert problems == [f"remove cgroup {tmp_path}: Directory not empty"]
    assert Record.load(written.run_dir).cgroups == [str(tmp_path)]


def test_only_a_socket_is_removed_as_a_socket(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    written = Record.create("default", "c1", f"unix://{precious}")
    assert teardown(written, soon()) == []
    assert precious.exists()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    source = tmp_path / "source"
    source.mkdir()
    source.joinpath("precious").write_text("x")
    yield source
    for point in mounts_below(str(tmp_path)):
        unmount(point)


def bind(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "--bind", source, target], check=True)


@needs_root
def test_mounts_go_before_files_and_what_is_behind_them_stays(source: Path, run: Path) -> None:
    written = Record.create("default", "c1", "")
    bind(source, run / "default/c1/share/with space")
    bind(source, run / "default/c1/share/with space")
    assert teardown(written, soon()) == []
    assert source.joinpath("precious").read_text() == "x"
    assert mounts_below(str(run.parent)) == [] and not run.exists()


@needs_root
def test_a_tree_with_a_mount_in_it_is_not_touched(source: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    bind(source, tree / "b")
    tree.joinpath("a").write_text("x")
    with pytest.raises(OSError, match="still mounted"):
        remove_tree(str(tree), soon())
    assert tree.joinpath("a").exists() and source.joinpath("precious").exists()


def test_a_tree_is_removed_however_deep_it_is_and_links_are_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    outside.joinpath("precious").write_text("x")
    tree = tmp_path / "tree"
    tree.mkdir()
    tree.joinpath("link").symlink_to(outside)
    tree.joinpath(".removing.1").mkdir()
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(1200):  # deeper than Python recurses
        for name in ("d", "e"):
            os.mkdir(name, dir_fd=fd)
        os.symlink(outside, "l", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree(str(tree), time.monotonic() + 60)
    assert not tree.exists() and outside.joinpath("precious").exists()


def test_removing_gives_up_at_the_deadline(tmp_path: Path) -> None:
    tmp_path.joinpath("tree/a").mkdir(parents=True)
    with pytest.raises(OSError, match="in time"):
        remove_tree(str(tmp_path / "tree"), time.monotonic() - 1)


def test_what_callers_need_is_exported() -> None:
    assert set(record.__all__) >= {"Record", "lock", "remove_run_dir", "sandbox_dir", "teardown"}


TC = """#!/bin/sh
echo "$*" >>{log}
case "$2" in del) exit {removed};; show) printf %s "{shown}";; esac
"""


def stand_in_for_tc(
    directory: Path, monkeypatch: pytest.MonkeyPatch, *, removed: int = 0, shown: str = ""
) -> Path:
    """`tc` and `nsenter` that write down what was to be done."""
    log = directory / "tc.log"
    (directory / "tc").write_text(TC.format(log=log, removed=removed, shown=shown))
    (directory / "nsenter").write_text('#!/bin/sh\nshift 2\nexec "$@"\n')
    for name in ("tc", "nsenter"):
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return log


def test_a_redirection_is_on_disk_before_it_is_made_and_undone_by_teardown(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stand_in_for_tc(tmp_path, monkeypatch)
    record = Record.create("ns", "c1", "")
    record.add_redirection("/proc/self/ns/net", ["eth0", "net1"])
    loaded = Record.load(record.run_dir)
    assert left(loaded)[0] == ("network", "eth0, net1 in /proc/self/ns/net")
    assert teardown(loaded, time.monotonic() + 5) == []
    assert log.read_text().splitlines() == ["qdisc del dev eth0 ingress", "qdisc del dev net1 ingress"]


def test_an_interface_that_is_gone_is_no_problem_one_that_keeps_its_qdisc_is(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_tc(tmp_path, monkeypatch, removed=2)
    redirection = Record.create("ns", "c1", "").add_redirection("/proc/self/ns/net", ["eth0"])
    redirection.undo()
    stand_in_for_tc(tmp_path, monkeypatch, removed=2, shown="qdisc ingress ffff: dev eth0")
    with pytest.raises(OSError, match="eth0"):
        redirection.undo()


def test_a_namespace_that_is_gone_or_another_one_s_now_is_left_alone(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = stand_in_for_tc(tmp_path, monkeypatch)
    path = tmp_path / "netns"
    path.touch()
    record = Record.create("ns", "c1", "")
    redirection = record.add_redirection(str(path), ["eth0"])
    path.rename(tmp_path / "other")
    redirection.undo()
    path.touch()
    redirection.undo()
    assert not log.exists()
    assert left(record) == [("directory", record.run_dir)]


def test_a_namespace_that_is_not_there_cannot_be_recorded(run: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Record.create("ns", "c1", "").add_redirection("/run/netns/none", ["eth0"])
