"""Saving and restoring: the driver against a stand-in for QEMU, and against QEMU itself without a guest."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from shim.errors import ChildFailed, DeadlineExceeded
from shim.hypervisor.api import Snapshot, SnapshotRefused, SnapshotUnusable, VmSpec
from shim.hypervisor.qemu import migration
from shim.hypervisor.qemu.driver import QemuHypervisor
from shim.log import Log
from shim.value import replace
from tests.hypervisor.qemu.test_driver import Make, make  # noqa: F401
from tests.hypervisor.qemu.test_real_qemu import spec  # noqa: F401

needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here")
SPEC = VmSpec("s", Path("/tmp"), Path("/k"), Path("/i"), (), 64, 1, "tcg")


@pytest.fixture
def snapshot(tmp_path: Path) -> Snapshot:
    """Of a VM of 64 MiB."""
    found = Snapshot(tmp_path / "memory", tmp_path / "state")
    found.state.write_bytes(b"state")
    found.memory.touch()
    os.truncate(found.memory, 64 << 20)
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("major", "given", "uri", "after"),
    [(7, "getfd", "fd:state", []), (10, "add-fd", "file:/dev/fdset/2", ["remove-fd"])],
)
def test_a_snapshot_is_loaded_before_start_returns(
    make: Make,  # noqa: F811
    snapshot: Snapshot,
    *,
    tmp_path: Path,
    major: int,
    given: str,
    uri: str,
    after: list[str],
) -> None:
    journal = tmp_path / "journal"

    async def scenario() -> None:
        vm = make(f"""
            state = None
            def answer(command, arguments, fds):
                global state
                with open({str(journal)!r}, "a") as file:
                    if command in ("getfd", "add-fd"):
                        state = fds[0]
                    if command == "migrate-incoming":
                        tell("MIGRATION", status="active")
                        print(os.read(state, 100), file=file)
                        tell("MIGRATION", status="completed")
                    print(command, json.dumps(arguments), file=file)
            serve(answer, {major})
        """)
        await vm.start(replace(SPEC, snapshot=snapshot))
        await vm.resume()
        await vm.stop()

    before = descriptors()
    asyncio.run(scenario())
    assert descriptors() == before
    lines = journal.read_text().splitlines()
    assert [line.split()[0] for line in lines] == [
        "qmp_capabilities", "migrate-set-capabilities", given, "b'state'", "migrate-incoming", *after, "cont", "quit",
    ]  # fmt: skip
    assert "x-ignore-shared" in lines[1] and uri in lines[4]


ENDS = """
    def answer(command, arguments, fds):
        if command == "migrate-incoming":
            sys.exit("qemu: Unknown ramblock, cannot accept migration")
    serve(answer)
"""
FAILS = """
    def answer(command, arguments, fds):
        if command == "migrate-incoming":
            tell("MIGRATION", status="failed")
    serve(answer)
"""
FAILS_AND_ENDS = """
    def answer(command, arguments, fds):
        if command == "migrate-incoming":
            tell("MIGRATION", status="failed")
            sys.exit("qemu: Not a migration stream")
    serve(answer)
"""
REFUSES = """
    def answer(command, arguments, fds):
        return "State blocked" if command == "migrate-incoming" else None
    serve(answer)
"""
KILLED = """
    def answer(command, arguments, fds):
        if command == "migrate-incoming":
            os.kill(os.getpid(), 9)
    serve(answer)
"""
SILENT = "serve(ok)"


@pytest.mark.parametrize(
    ("body", "error", "said"),
    [
        (ENDS, SnapshotRefused, "Unknown ramblock"),
        (FAILS, SnapshotRefused, "migrate-incoming: failed"),
        (FAILS_AND_ENDS, SnapshotRefused, "Not a migration stream"),
        (REFUSES, SnapshotRefused, "State blocked"),
        (KILLED, ChildFailed, "signal 9"),
        (SILENT, DeadlineExceeded, "migrate-incoming: not done"),
    ],
)
def test_a_snapshot_that_is_refused_leaves_no_process_and_says_why(
    make: Make,  # noqa: F811
    snapshot: Snapshot,
    *,
    monkeypatch: pytest.MonkeyPatch,
    body: str,
    error: type[Exception],
    said: str,
) -> None:
    monkeypatch.setattr(migration, "_TIMEOUT_S", 0.2 if body == SILENT else 10)

    async def scenario() -> None:
        vm = make(body)
        with pytest.raises(error, match=said):
            await vm.start(replace(SPEC, snapshot=snapshot))

    before = descriptors()
    asyncio.run(scenario())
    assert descriptors() == before


@pytest.mark.parametrize("broken", ["memory", "state"])
def test_a_file_that_is_gone_is_not_the_snapshots_fault(make: Make, snapshot: Snapshot, broken: str) -> None:  # noqa: F811
    getattr(snapshot, broken).unlink()

    async def scenario() -> None:
        with pytest.raises(SnapshotUnusable, match=f"{broken}: No such file"):
            await make("serve(ok)").start(replace(SPEC, snapshot=snapshot))

    before = descriptors()
    asyncio.run(scenario())
    assert descriptors() == before


def test_a_console_line_is_seen_before_and_while_it_is_waited_for(make: Make) -> None:  # noqa: F811
    async def scenario() -> None:
        vm = make("""
            def answer(command, arguments, fds):
                if command == "cont":
                    os.write(console, b"agent ready\\n")
            serve(answer)
        """)
        await vm.start(SPEC)
        waiting = asyncio.create_task(vm.console_line("agent ready"))
        await asyncio.sleep(0)
        assert not waiting.done()
        await vm.resume()
        await asyncio.wait_for(waiting, 5)
        await asyncio.wait_for(vm.console_line("ready"), 5)
        never = asyncio.create_task(vm.console_line("never"))
        await asyncio.sleep(0)
        await vm.stop()
        await asyncio.wait_for(never, 5)  # nothing more can come

    asyncio.run(scenario())


@needs_qemu
def test_the_machines_own_qemu_saves_and_restores(spec: VmSpec, tmp_path: Path) -> None:  # noqa: F811
    saved = Snapshot(tmp_path / "memory", tmp_path / "state")

    async def scenario() -> None:
        original = QemuHypervisor(Log(2, "error"))
        await original.start(spec)
        await original.save(saved)
        assert (await original.stop()).status == 0
        for _ in range(2):
            clone = QemuHypervisor(Log(2, "error"))
            await clone.start(replace(spec, snapshot=saved))
            assert (await clone.stop()).status == 0

    asyncio.run(scenario())
    assert saved.memory.stat().st_size == spec.memory_mib << 20
    assert 0 < saved.state.stat().st_size < 2 << 20  # the guest's memory is not in it


@needs_qemu
def test_a_state_that_is_cut_off_or_of_another_machine_is_refused(spec: VmSpec, tmp_path: Path) -> None:  # noqa: F811
    saved = Snapshot(tmp_path / "memory", tmp_path / "state")

    async def scenario() -> None:
        original = QemuHypervisor(Log(2, "error"))
        await original.start(spec)
        await original.save(saved)
        await original.stop()
        os.truncate(saved.state, saved.state.stat().st_size // 2)
        with pytest.raises(SnapshotRefused):
            await QemuHypervisor(Log(2, "error")).start(replace(spec, snapshot=saved))
        saved.state.write_bytes(b"nonsense" * 1000)
        with pytest.raises(SnapshotRefused):
            await QemuHypervisor(Log(2, "error")).start(replace(spec, snapshot=saved))

    asyncio.run(scenario())


@needs_qemu
def test_the_fingerprint_names_machine_and_files(spec: VmSpec) -> None:  # noqa: F811
    vm = QemuHypervisor(Log(2, "error"))
    first = vm.fingerprint(spec)
    assert vm.fingerprint(replace(spec, name="other", run_dir=Path("/other"))) == first
    assert vm.fingerprint(replace(spec, vcpus=2)) != first
    assert {spec.kernel, spec.initrd} < set(first.files)
    assert first.files[0].name.startswith("qemu-system")
