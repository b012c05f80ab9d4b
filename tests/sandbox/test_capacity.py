"""A VM that grows with its containers' limits: what is plugged in when, and what happens when it is not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from shim.errors import FailedPrecondition, Internal, ResourceExhausted
from shim.hypervisor.api import NotTaken, VmSpec
from shim.log import Log
from shim.sandbox.capacity import Capacity
from shim.vm_size import Size
from tests.fakes.agent import FakeAgent
from tests.fakes.hypervisor import FakeHypervisor

MIB = 1 << 20


class Scene:
    """A VM of 256 MiB and one CPU that may grow to 2 GiB and 3 CPUs."""

    def __init__(self, folder: Path, size: Size, least: Size | None, most: Size) -> None:
        self.vm, self.agent = FakeHypervisor(), FakeAgent()
        self.folder = folder
        self.fd = os.open(folder / "log", os.O_WRONLY | os.O_CREAT)
        self.capacity = Capacity(
            self.vm, self.agent, Log(self.fd), base=size, least=least or size, size=size, most=most
        )

    async def claim(self, container: str, memory_mib: int = 0, cpus: float = 0) -> Any:
        quota = int(cpus * 100_000)
        resources = {"memory": {"limit": memory_mib * MIB}, "cpu": {"quota": quota, "period": 100_000}}
        return await self.capacity.claim(container, resources)

    def plugged(self) -> list[str]:
        """What was plugged in since it was asked last."""
        found = [call.removeprefix("add_") for call in self.vm.calls if call.startswith("add_")]
        self.vm.calls.clear()
        return found

    def warnings(self) -> list[str]:
        lines = (self.folder / "log").read_text().splitlines()
        return [line for line in lines if "level=warning" in line]


def run(
    folder: Path,
    scenario: Any,
    size: Size = Size(256, 1),  # noqa: B008 - frozen
    most: Size = Size(2048, 3),  # noqa: B008
    least: Size | None = None,
) -> None:
    async def main() -> None:
        scene = Scene(folder, size, least, most)
        await scene.vm.start(VmSpec("c1", folder, folder, folder, (), size.memory_mib, size.vcpus))
        scene.vm.calls.clear()
        work: Coroutine[Any, Any, None] = scenario(scene)
        await work
        os.close(scene.fd)

    asyncio.run(main())


def test_what_all_containers_want_beyond_the_vm_is_plugged_in_and_put_to_use(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.claim("pause")
        assert scene.plugged() == [] and scene.agent.calls == []
        await scene.claim("a", 100, 0.5)
        assert scene.plugged() == ["memory:256"]
        await scene.claim("b", 100, 0.5)  # still fits
        assert scene.plugged() == []
        await scene.claim("c", 100, 0.5)
        assert scene.plugged() == ["memory:256", "vcpu"]
        assert scene.capacity.size == Size(768, 2)
        assert scene.agent.calls == ["online_cpu_mem"] * 2 and scene.agent.nb_cpus == 2

    run(tmp_path, scenario)


def test_what_a_container_leaves_is_the_next_one_s(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        assert await scene.claim("a", 500, 2) is None
        assert scene.plugged() == ["memory:512", "vcpu"]
        scene.capacity.put_back("a", None)
        await scene.claim("b", 500, 2)
        before = await scene.claim("b", 10, 0.1)
        assert scene.plugged() == [] and scene.capacity.size == Size(768, 2)
        scene.capacity.put_back("b", before)  # 500 MiB again
        await scene.claim("c", 200)
        assert scene.plugged() == ["memory:256"]

    run(tmp_path, scenario)


def test_an_update_says_only_what_changes(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.claim("a", 500, 2)
        scene.plugged()
        await scene.capacity.claim("a", {"cpu": {"quota": 300_000}})
        assert scene.plugged() == ["vcpu"]
        await scene.capacity.claim("a", {"memory": {"limit": 600 * MIB}})
        assert scene.plugged() == ["memory:256"]

    run(tmp_path, scenario)


def test_a_restored_vm_gets_at_first_what_its_sandbox_was_said_to_need(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.claim("pause")
        assert scene.plugged() == ["memory:512", "vcpu"]
        await scene.claim("a", 500, 2)  # what had been said
        assert scene.plugged() == []

    run(tmp_path, scenario, least=Size(768, 2))


def test_beyond_the_most_it_goes_on_with_a_warning(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.claim("a", 9000, 9)
        assert scene.plugged() == ["memory:1792", "vcpu", "vcpu"]
        assert scene.capacity.size == Size(2048, 3)
        (warning,) = scene.warnings()
        assert 'wanted="12288 MiB and 9 CPUs"' in warning and "it can have 2048 MiB and 3 CPUs" in warning

    run(tmp_path, scenario)


def test_no_more_slots_for_memory_are_no_reason_to_have_fewer_cpus(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.vm.fail["add_memory"] = ResourceExhausted("no slots")
        await scene.claim("a", 500, 2)
        assert scene.capacity.size == Size(256, 2)
        (warning,) = scene.warnings()
        assert "no slots" in warning

    run(tmp_path, scenario)


@pytest.mark.parametrize("method", ["add_memory", "add_vcpu"])
def test_a_vmm_that_refuses_fails_the_claim_and_the_next_one_tries_again(tmp_path: Path, method: str) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.claim("a", 10)
        scene.plugged()
        scene.vm.fail[method] = FailedPrecondition("QMP device_add: no")
        with pytest.raises(FailedPrecondition):
            await scene.claim("a", 1000, 2)
        del scene.vm.fail[method]
        await scene.claim("b", 10)  # a has what it had
        scene.plugged()
        await scene.claim("b", 1000, 2)
        assert scene.capacity.size == Size(1536, 2)

    run(tmp_path, scenario)


def test_memory_that_the_guest_has_not_taken_stays_and_the_guest_is_asked_again(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.vm.fail["add_memory"] = NotTaken("mute")
        with pytest.raises(NotTaken):
            await scene.claim("a", 100)
        assert scene.capacity.size == Size(512, 1) and scene.agent.calls == []
        scene.plugged()
        await scene.claim("a", 100)
        assert scene.plugged() == [] and scene.agent.calls == ["online_cpu_mem"]

    run(tmp_path, scenario)


def test_a_guest_that_does_not_start_its_cpus_is_asked_again(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        scene.agent.fail["online_cpu_mem"] = Internal("no")
        with pytest.raises(Internal):
            await scene.claim("a", 0, 2)
        del scene.agent.fail["online_cpu_mem"]
        await scene.claim("a", 0, 2)
        assert scene.plugged() == ["vcpu"] and scene.agent.nb_cpus == 2

    run(tmp_path, scenario)


def test_much_memory_comes_in_pieces_that_a_small_guest_can_take(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.claim("a", 7000)
        assert scene.plugged() == ["memory:4096", "memory:3840"]

    run(tmp_path, scenario, most=Size(1 << 20, 1))


def test_pieces_are_whole_blocks_and_never_more_than_there_may_be(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.claim("a", 100)
        assert scene.plugged() == ["memory:256"] and scene.capacity.size == Size(556, 1)
        await scene.claim("a", 5000)
        assert scene.plugged() == ["memory:384"] and scene.capacity.size == Size(940, 1)

    run(tmp_path, scenario, size=Size(300, 1), most=Size(1000, 1))


def test_a_very_large_guest_takes_larger_blocks(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await scene.claim("a", 1)
        assert scene.plugged() == ["memory:32768"]  # 32256 are missing

    run(tmp_path, scenario, size=Size(66048, 1), most=Size(1 << 20, 1))


def test_claims_that_come_together_are_served_one_after_the_other(tmp_path: Path) -> None:
    async def scenario(scene: Scene) -> None:
        await asyncio.gather(*(scene.claim(name, 200, 1) for name in "abc"))
        assert scene.capacity.size == Size(1024, 3)
        assert sum(int(call.partition(":")[2] or 0) for call in scene.plugged()) == 768

    run(tmp_path, scenario)
