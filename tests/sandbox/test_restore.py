"""A VM that was to be restored from a snapshot and is no good: one that boots takes its place, once, and the snapshot
is rejected if that does better. What is not the snapshot's fault costs no snapshot."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from shim.errors import FailedPrecondition, Internal, NotFound, ShimError, Unavailable
from shim.hypervisor.api import Snapshot, SnapshotRefused, SnapshotUnusable
from shim.sandbox import machine
from tests.sandbox.stack import Stack, until, with_stack

SNAPSHOT = Snapshot(Path("/t/memory"), Path("/t/state"))


def booted(shim: Stack) -> bool:
    spec = shim.hypervisor.spec
    return spec is not None and spec.snapshot is None


async def while_the_guest_is_silent(shim: Stack) -> asyncio.Task[object]:
    """A Create from a snapshot whose guest runs and has not answered."""
    shim.snapshot = SNAPSHOT
    shim.agent.hold["connect"] = asyncio.Event()
    create: asyncio.Task[object] = asyncio.create_task(shim.create())
    await until(lambda: "connect" in shim.agent.calls)
    return create


@with_stack
async def test_a_restored_vm_is_used_as_any_other(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    await shim.run()
    assert shim.hypervisor.spec is not None and shim.hypervisor.spec.snapshot == SNAPSHOT
    assert shim.rejected is None


@with_stack
async def test_a_snapshot_the_vmm_refuses_is_followed_by_a_boot(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    first = shim.hypervisor
    first.fail["start"] = SnapshotRefused("state is truncated")
    await shim.run()
    assert "state is truncated" in str(shim.rejected)
    assert shim.hypervisor is not first and booted(shim)
    assert shim.told() == ["TaskCreated:c1", "TaskStarted:c1"]


@with_stack
async def test_without_room_for_its_memory_a_vm_boots_and_the_snapshot_stays(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    shim.hypervisor.fail["start"] = SnapshotUnusable("copying the snapshot's memory: no space")
    await shim.run()
    assert booted(shim) and shim.rejected is None


@with_stack
async def test_a_restored_guest_that_crashes_is_followed_by_a_boot(shim: Stack) -> None:
    create = await while_the_guest_is_silent(shim)
    share, device = shim.share, shim.device_process
    shim.hypervisor.die(0, "the VM ended itself (guest-reset)")
    shim.agent.hold["connect"].set()
    await create
    assert booted(shim) and "guest-reset" in str(shim.rejected)
    assert share.calls[-1] == "aclose" and device.calls[-1] == "aclose"


def test_a_restored_guest_that_stays_mute_is_followed_by_a_boot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_RESTORE_S", 0.05)

    @with_stack
    async def scenario(shim: Stack) -> None:
        await (await while_the_guest_is_silent(shim))
        assert booted(shim) and "not up after 0." in str(shim.rejected)

    scenario(tmp_path)


@with_stack
async def test_a_restored_guest_that_cannot_do_what_one_that_boots_can_is_rejected(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    shim.agent.fail["create_sandbox"] = Internal("no luck")
    shim.mended.add("create_sandbox")
    await shim.run()
    assert booted(shim) and "no luck" in str(shim.rejected)


@with_stack
async def test_what_fails_a_boot_too_is_not_the_snapshots_fault(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    shim.agent.fail["create_sandbox"] = Internal("no luck")
    with pytest.raises(Internal, match="no luck"):
        await shim.create()
    assert booted(shim) and shim.rejected is None
    assert shim.hypervisor.calls.count("start") == 1
    assert shim.hypervisor.calls[-1] == "stop"


@with_stack
async def test_a_vm_that_somebody_kills_is_not_the_snapshots_fault(shim: Stack) -> None:
    create = await while_the_guest_is_silent(shim)
    shim.hypervisor.die(-signal.SIGKILL)
    with pytest.raises(Unavailable, match="SIGKILL"):
        await create
    assert not booted(shim) and shim.rejected is None


@pytest.mark.parametrize("part", ["virtiofsd", "device"])
def test_a_companion_that_ends_is_not_the_snapshots_fault(tmp_path: Path, part: str) -> None:
    @with_stack
    async def scenario(shim: Stack) -> None:
        create = await while_the_guest_is_silent(shim)
        (shim.share if part == "virtiofsd" else shim.device_process).die()
        with pytest.raises(Unavailable, match=f"{part} has ended: .*killed by SIGKILL"):
            await create
        assert not booted(shim) and shim.rejected is None

    scenario(tmp_path)


@pytest.mark.parametrize("part", ["share", "device", "hypervisor"])
def test_a_program_that_is_missing_is_not_the_snapshots_fault(tmp_path: Path, part: str) -> None:
    error: ShimError = NotFound("program not found: thing")

    @with_stack
    async def scenario(shim: Stack) -> None:
        shim.snapshot = SNAPSHOT
        if part == "share":
            shim.share.fail["start"] = error
        elif part == "device":
            shim.device_process.fail = error
        else:
            shim.hypervisor.fail["start"] = error
        with pytest.raises(NotFound, match="program not found: thing"):
            await shim.create()
        assert not booted(shim) and shim.rejected is None

    scenario(tmp_path)


@with_stack
async def test_a_boot_that_fails_is_not_tried_again(shim: Stack) -> None:
    shim.hypervisor.fail["start"] = Internal("no such kernel")
    with pytest.raises(Internal, match="no such kernel"):
        await shim.create()
    assert shim.rejected is None


@with_stack
async def test_a_device_that_qemu_refuses_because_its_companion_has_ended_is_explained_by_that(
    shim: Stack,
) -> None:
    shim.snapshot = SNAPSHOT
    shim.hypervisor.fail["add_device"] = FailedPrecondition("QMP chardev-add: Connection refused")
    create = asyncio.create_task(shim.create())
    await until(lambda: "add_device:vsock0" in shim.hypervisor.calls)
    shim.share.die()
    with pytest.raises(Unavailable, match="virtiofsd has ended: virtiofsd was killed by SIGKILL"):
        await create
    assert not booted(shim) and shim.rejected is None
