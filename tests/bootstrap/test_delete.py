"""`delete`: from the record alone, only what its id stands for, and nothing of a live sandbox."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shim.bootstrap.messages import decode
from shim.record import Record, lock
from shim.record.removal import mounts_below, unmount
from tests.bootstrap.installed import Shim, eventually

CRI = "io.kubernetes.cri.sandbox-id"
GROUP = "io.containerd.runc.v2.group"


@pytest.fixture
def spawn() -> Iterator[Callable[[], "subprocess.Popen[bytes]"]]:
    children: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        children.append(subprocess.Popen(["sleep", "60"]))
        return children[-1]

    yield start
    for child in children:
        child.kill()
        child.wait()


def reply(done: "subprocess.CompletedProcess[bytes]") -> dict[str, Any]:
    assert done.returncode == 0, done
    return decode("containerd.task.v2.DeleteResponse", done.stdout)


def crashed(shim: Shim, bundle: Path, vmm: int, group: str = "") -> Record:
    """A sandbox whose daemon was killed while `vmm` still runs."""
    shim.started(bundle)
    shim.state(group or bundle.name)
    record = Record.load(f"{shim.run}/ns/{group or bundle.name}")
    record.add_process("hypervisor", vmm)
    record.set_container(bundle.name, vmm)
    shim.kill()
    return record


def test_a_container_that_never_was_is_deleted_with_success(shim: Shim) -> None:
    before = time.time()
    done = shim.delete(shim.bundle("c1"))
    answer = reply(done)
    assert "pid" not in answer and answer["exit_status"] == 137
    stamp = answer["exited_at"]["seconds"] + answer["exited_at"].get("nanos", 0) / 1e9
    assert before <= stamp <= time.time()
    assert done.stderr == b"" and not shim.run.exists()


def test_with_the_daemon_dead_the_whole_sandbox_goes_and_again_is_fine(shim: Shim, spawn: Any) -> None:
    bundle, vmm = shim.bundle("c1"), spawn()
    crashed(shim, bundle, vmm.pid)
    first = shim.delete(bundle)
    assert reply(first)["pid"] == vmm.pid and first.stderr == b""
    assert vmm.wait(5) == -9
    assert not shim.run.exists() and os.listdir(shim.sockets) == []
    second = shim.delete(bundle)
    assert "pid" not in reply(second) and second.stderr == b""
    assert bundle.joinpath("config.json").exists() and bundle.joinpath("rootfs").is_dir()


def test_the_bundle_may_be_gone(shim: Shim, spawn: Any) -> None:
    bundle, vmm = shim.bundle("c1"), spawn()
    crashed(shim, bundle, vmm.pid)
    bundle.rename(shim.tmp / "moved")
    assert reply(shim.delete(bundle))["pid"] == vmm.pid
    assert vmm.wait(5) == -9 and os.listdir(shim.sockets) == []


def test_the_working_directory_may_be_gone(shim: Shim) -> None:
    script = f'mkdir {shim.tmp}/gone; cd {shim.tmp}/gone; rmdir {shim.tmp}/gone; exec "$@"'
    done = subprocess.run(
        ["sh", "-c", script, "sh", *shim.argv("delete", "c1")], capture_output=True, check=False
    )
    assert reply(done)["exit_status"] == 137


def test_a_live_sandbox_is_not_touched_whichever_id_is_deleted(shim: Shim, spawn: Any) -> None:
    sandbox, vmm = shim.bundle("p1", {CRI: "p1"}), spawn()
    path = shim.started(sandbox)
    pid = shim.state("p1")["pid"]
    container = shim.bundle("c1", {CRI: "p1"})
    shim.started(container)
    record = Record.load(f"{shim.run}/ns/p1")
    record.add_process("hypervisor", vmm.pid)
    record.set_container("c1", vmm.pid)
    for bundle in (container, sandbox, container, sandbox):
        reply(shim.delete(bundle))
    assert reply(shim.delete(container))["pid"] == vmm.pid
    assert vmm.poll() is None and shim.daemons() == [pid] and os.path.exists(path)
    assert Record.load(f"{shim.run}/ns/p1").containers == {"c1": vmm.pid}


def test_a_daemon_without_a_socket_any_more_is_still_alive(shim: Shim, spawn: Any) -> None:
    bundle, vmm = shim.bundle("c1"), spawn()
    path = shim.started(bundle)
    shim.state("c1")
    Record.load(f"{shim.run}/ns/c1").add_process("hypervisor", vmm.pid)
    os.unlink(path)
    reply(shim.delete(bundle))
    assert vmm.poll() is None and len(shim.daemons()) == 1


def test_a_daemon_that_is_just_dying_is_waited_for(shim: Shim, spawn: Any) -> None:
    bundle, vmm, dying = shim.bundle("c1"), spawn(), spawn()
    record = crashed(shim, bundle, vmm.pid)
    record.forget_process(record.processes[0].pid)
    record.add_process("daemon", dying.pid)
    delete = subprocess.Popen(shim.argv("delete", "c1"), cwd=bundle, stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        delete.wait(0.3)
    dying.kill()
    dying.wait()
    assert delete.communicate(timeout=10)[0] and delete.returncode == 0
    assert vmm.wait(5) == -9 and not shim.run.exists()


def test_a_killed_daemon_whose_socket_is_not_closed_yet_serves_nobody(shim: Shim, spawn: Any) -> None:
    bundle, vmm, killed = shim.bundle("c1"), spawn(), spawn()
    record = crashed(shim, bundle, vmm.pid)
    record.forget_process(record.processes[0].pid)
    record.add_process("daemon", killed.pid)
    os.unlink(record.socket)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(record.socket)
        listening.listen()
        killed.kill()  # and nobody waits for it: the kernel is not done with it
        assert reply(shim.delete(bundle))["pid"] == vmm.pid
    assert vmm.wait(5) == -9 and not shim.run.exists()


def test_a_daemon_that_has_no_record_yet_is_alive_by_its_socket(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    path = shim.started(bundle)
    shim.state("c1")
    shim.run.joinpath("ns/c1/record.json").unlink()
    reply(shim.delete(bundle))
    assert len(shim.daemons()) == 1 and os.path.exists(path)


def test_a_pods_container_does_not_take_the_dead_sandbox_with_it(shim: Shim, spawn: Any) -> None:
    vmm = spawn()
    sandbox, container = shim.bundle("p1", {CRI: "p1"}), shim.bundle("c1", {CRI: "p1"})
    crashed(shim, sandbox, vmm.pid).set_container("c1", 7)
    assert reply(shim.delete(container))["pid"] == 7
    assert vmm.poll() is None
    assert reply(shim.delete(sandbox))["pid"] == vmm.pid
    assert vmm.wait(5) == -9 and not shim.run.exists()


def test_a_group_that_no_container_is_named_after_goes_with_any_of_them(shim: Shim, spawn: Any) -> None:
    bundle, vmm = shim.bundle("c1", {GROUP: "g1"}), spawn()
    crashed(shim, bundle, vmm.pid, "g1")
    reply(shim.delete(bundle))
    assert vmm.wait(5) == -9 and not shim.run.exists()


def test_a_recorded_pid_that_is_somebody_elses_now_is_spared(shim: Shim, spawn: Any) -> None:
    bundle, child = shim.bundle("c1"), spawn()
    record = crashed(shim, bundle, child.pid)
    record.processes[-1].start_time -= 1
    record.save()
    reply(shim.delete(bundle))
    assert child.poll() is None and not shim.run.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00", b"[]", b'{"processes": 1}', b"[" * 100_000])
def test_a_garbage_record_is_complained_about_and_the_rest_removed(shim: Shim, content: bytes) -> None:
    bundle = shim.bundle("c1")
    shim.started(bundle)
    shim.state("c1")
    shim.kill()
    shim.run.joinpath("ns/c1/record.json").write_bytes(content)
    done = shim.delete(bundle)
    assert reply(done)["exit_status"] == 137
    assert b"not a record" in done.stderr and done.stderr.count(b"\n") == 1
    assert not shim.run.exists() and os.listdir(shim.sockets) == []


def test_a_garbage_spec_does_not_stop_the_clean_up(shim: Shim, spawn: Any) -> None:
    bundle, vmm = shim.bundle("c1"), spawn()
    crashed(shim, bundle, vmm.pid)
    bundle.joinpath("config.json").write_text(f"{CRI} {{")
    done = shim.delete(bundle)
    assert (
        reply(done)["pid"] == vmm.pid and b'"io.kubernetes' in done.stderr
    ) or b"not an OCI spec" in done.stderr
    assert vmm.wait(5) == -9


def test_a_start_in_progress_is_not_disturbed(shim: Shim) -> None:
    fd = lock(f"{shim.run}/ns/c1", time.monotonic(), create=True)
    assert fd is not None
    began = time.monotonic()
    done = shim.delete(shim.bundle("c1"))
    # After 4 s, before containerd's 5 are over; a busy machine takes longer over all the rest.
    assert 4 <= time.monotonic() - began < 20
    os.close(fd)
    assert reply(done)["exit_status"] == 137 and b"holds its lock" in done.stderr


def test_two_deletes_at_once_both_succeed(shim: Shim, spawn: Any) -> None:
    bundle, vmm = shim.bundle("c1"), spawn()
    crashed(shim, bundle, vmm.pid)
    argv = shim.argv("delete", "c1", "-bundle", str(bundle))
    children = [subprocess.Popen(argv, cwd=bundle, stderr=subprocess.PIPE) for _ in range(4)]
    assert [child.communicate(timeout=10)[1] for child in children] == [b""] * 4
    assert {child.returncode for child in children} == {0} and vmm.wait(5) == -9


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")
def test_a_leftover_rootfs_is_unmounted_and_what_it_showed_stays(shim: Shim) -> None:
    bundle, source = shim.bundle("c1"), shim.tmp / "source"
    source.mkdir()
    source.joinpath("precious").write_text("x")
    for _ in range(2):
        subprocess.run(["mount", "--bind", source, bundle / "rootfs"], check=True)
    try:
        reply(shim.delete(bundle))
        assert mounts_below(str(bundle)) == [] and source.joinpath("precious").exists()
    finally:
        unmount(str(bundle / "rootfs"))


def test_the_socket_of_a_dead_shim_in_a_directory_of_containerds_choice_goes_too(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    path = shim.tmp / "elsewhere"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    bundle.joinpath("address").write_text(f"unix://{path}")
    reply(shim.delete(bundle))
    assert not path.exists()


def test_after_a_delete_the_same_name_can_start_again(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    path = shim.started(bundle)
    shim.kill()
    reply(shim.delete(bundle))
    assert shim.started(bundle) == path
    eventually(shim.daemons)
