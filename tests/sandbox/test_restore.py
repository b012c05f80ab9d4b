"""A VM that was to be restored from a snapshot and is no good: one that boots takes its place, once."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from shim.errors import DataLoss, Internal, Unavailable
from shim.hypervisor.api import Snapshot
from tests.sandbox.stack import Stack, until, with_stack

SNAPSHOT = Snapshot(Path("/t/memory"), Path("/t/state"))


@with_stack
async def test_a_restored_vm_is_used_as_any_other(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    await shim.run()
    assert shim.hypervisor.spec is not None and shim.hypervisor.spec.snapshot == SNAPSHOT
    assert shim.refused is None


@with_stack
async def test_a_snapshot_the_vmm_refuses_is_followed_by_a_boot(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    first = shim.hypervisor
    first.fail["start"] = DataLoss("state is truncated")
    await shim.run()
    assert isinstance(shim.refused, DataLoss) and "state is truncated" in str(shim.refused)
    assert shim.hypervisor is not first
    assert shim.hypervisor.spec is not None and shim.hypervisor.spec.snapshot is None
    assert shim.told() == ["TaskCreated:c1", "TaskStarted:c1"]


@with_stack
async def test_a_restored_guest_that_crashes_is_followed_by_a_boot(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    shim.agent.hold["connect"] = asyncio.Event()
    first, share, device = shim.hypervisor, shim.share, shim.device_process
    create = asyncio.create_task(shim.create())
    await until(lambda: "connect" in shim.agent.calls)
    first.die(0, "the VM ended itself (guest-reset)")
    shim.agent.hold["connect"].set()
    await create
    assert "guest-reset" in str(shim.refused)
    assert share.calls[-1] == "aclose" and device.calls[-1] == "aclose"


@with_stack
async def test_a_vm_that_somebody_kills_is_not_the_snapshots_fault(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    shim.agent.hold["connect"] = asyncio.Event()
    create = asyncio.create_task(shim.create())
    await until(lambda: "connect" in shim.agent.calls)
    shim.hypervisor.die(-signal.SIGKILL)
    with pytest.raises(Unavailable, match="SIGKILL"):
        await create
    assert shim.refused is None


@with_stack
async def test_it_is_tried_once_more_and_not_again(shim: Stack) -> None:
    shim.snapshot = SNAPSHOT
    shim.agent.fail["create_sandbox"] = Internal("no luck")
    with pytest.raises(Internal, match="no luck"):
        await shim.create()
    assert "no luck" in str(shim.refused)
    assert shim.hypervisor.calls.count("start") == 1
    assert shim.hypervisor.calls[-1] == "stop"


@with_stack
async def test_a_boot_that_fails_is_not_tried_again(shim: Stack) -> None:
    shim.hypervisor.fail["start"] = Internal("no such kernel")
    with pytest.raises(Internal, match="no such kernel"):
        await shim.create()
    assert shim.refused is None
