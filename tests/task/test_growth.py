"""Limits that the VM has to grow for, as containerd brings them: by Create and by Update, on fakes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shim.errors import FailedPrecondition, Internal, InvalidArgument
from shim.hypervisor.api import NotTaken
from shim.vm_size import Size
from tests.sandbox.stack import Stack, until, with_stack
from tests.task.test_control import update

MIB = 1 << 20


def limited(memory_mib: int, cpus: int = 0) -> dict[str, Any]:
    cpu = {"quota": cpus * 100_000, "period": 100_000}
    return {"linux": {"resources": {"memory": {"limit": memory_mib * MIB}, "cpu": cpu}}}


def plugged(shim: Stack) -> list[str]:
    return [call for call in shim.hypervisor.calls if call.startswith(("add_memory", "add_vcpu"))]


def size(shim: Stack) -> Size:
    assert shim.sandbox.machine is not None
    return shim.sandbox.machine.size


@with_stack
async def test_a_later_container_finds_a_vm_that_has_its_limits(shim: Stack) -> None:
    await shim.run()
    assert plugged(shim) == [] and size(shim) == Size(128, 1)
    held = shim.agent.hold["create_container"] = asyncio.Event()
    creating = asyncio.create_task(shim.create("c2", spec=limited(300, 2)))
    await until(lambda: shim.agent.calls[-1] == "create_container")
    assert plugged(shim) == ["add_memory:384", "add_vcpu"]
    assert shim.agent.calls[-2] == "online_cpu_mem" and shim.agent.nb_cpus == 2
    held.set()
    await creating
    await shim.start("c2")
    await shim.kill(container_id="c2")
    await shim.wait("c2")
    await shim.delete("c2")
    await shim.create("c3", spec=limited(300, 2))  # in c2's place
    assert len(plugged(shim)) == 2 and size(shim) == Size(512, 2)


@with_stack
async def test_an_update_is_the_cgroup_s_when_the_vm_has_grown(shim: Stack) -> None:
    await shim.run(spec=limited(100))
    assert plugged(shim) == ["add_memory:128"]
    held = shim.agent.hold["update_container"] = asyncio.Event()
    raising = asyncio.create_task(update(shim, {"memory": {"limit": 300 * MIB}}))
    await until(lambda: shim.agent.calls[-1] == "update_container")
    assert size(shim) == Size(512, 1)
    held.set()
    await raising
    assert shim.agent.limits["c1"] == {"memory": {"limit": 300 * MIB}}
    await update(shim, {"memory": {"limit": 50 * MIB}})
    assert size(shim) == Size(512, 1) and shim.agent.limits["c1"] == {"memory": {"limit": 50 * MIB}}


@with_stack
async def test_an_update_that_the_guest_refuses_claims_nothing(shim: Stack) -> None:
    await shim.run()
    shim.agent.fail["update_container"] = Internal("crun: no")
    with pytest.raises(Internal, match="crun: no"):
        await update(shim, {"memory": {"limit": 300 * MIB}})
    with pytest.raises(InvalidArgument, match="memory"):
        shim.agent.fail["update_container"] = InvalidArgument("resources.memory.limit: not a whole number")
        await update(shim, {"memory": {"limit": "300M"}})
    await shim.create("c2", spec=limited(300))
    assert plugged(shim) == ["add_memory:384"]  # and not twice as much


@pytest.mark.parametrize(
    "error", [FailedPrecondition("QMP object-add: no memory"), NotTaken("the guest has not taken it")]
)
def test_a_container_for_which_the_vm_does_not_grow_is_not_made(tmp_path: Any, error: Any) -> None:
    async def scenario(shim: Stack) -> None:
        await shim.run()
        shim.hypervisor.fail["add_memory"] = error
        with pytest.raises(FailedPrecondition, match=str(error)):
            await shim.create("c2", spec=limited(300))
        assert "c2" not in shim.sandbox.containers and shim.agent.calls.count("create_container") == 1
        del shim.hypervisor.fail["add_memory"]
        await shim.create("c2", spec=limited(300))
        assert size(shim) == Size(512, 1)

    with_stack(scenario)(tmp_path)


@with_stack
async def test_a_restored_vm_has_its_sandbox_s_size_before_its_first_container(shim: Stack) -> None:
    shim.least = Size(1024, 3)
    await shim.run()
    assert plugged(shim) == ["add_memory:896", "add_vcpu", "add_vcpu"]
    assert size(shim) == Size(1024, 3)
