"""How much memory and how many CPUs the VM of a sandbox has, and what its containers may use of it.

What is missing is plugged in before a container is made or its limits are raised, and never leaves the VM again: a
guest gives memory back only if nothing is in it, and what it does not use costs the host nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from shim.agent.api import Agent
from shim.errors import ResourceExhausted
from shim.hypervisor.api import Hypervisor, NotTaken
from shim.log import Log
from shim.vm_size import Demand, Size, needed

# The guest's kernel takes memory in blocks of 128 MiB; of 2 GiB, at most, when it has begun with 64 GiB.
_BLOCK_MIB, _LARGE_BLOCK_MIB, _LARGE_MIB = 128, 2048, 64 << 10
# For each page of new memory the guest needs 64 bytes of the old. So much at once takes a quarter of what it has.
_FACTOR = 16


class Capacity:
    """Of one VM that has `size` and can grow up to `most`. It is to have `least` at the first claim, because that is
    known of its sandbox; `base` is what it needs without any limits."""

    def __init__(
        self,
        hypervisor: Hypervisor,
        agent: Agent,
        log: Log,
        *,
        base: Size,
        least: Size,
        size: Size,
        most: Size,
    ) -> None:
        self._hypervisor, self._agent, self._log = hypervisor, agent, log
        self._block_mib = _BLOCK_MIB if size.memory_mib < _LARGE_MIB else _LARGE_BLOCK_MIB
        room_mib = _down(max(0, most.memory_mib - size.memory_mib), self._block_mib)
        self._base, self._least = base, least
        self._most = Size(size.memory_mib + room_mib, max(size.vcpus, most.vcpus))
        self._demands: dict[str, Demand] = {}
        self._lock = asyncio.Lock()
        self.size = self._used = size  # what it has; what the guest has put to use

    async def claim(self, container_id: str, resources: Mapping[str, Any]) -> Demand | None:
        """Have the VM large enough for a container with these limits (the runtime spec's object, and what is missing
        there as it was) beside the others; what was claimed for it before. What the VM cannot have at all is done
        without, with a warning: a limit is no reservation. An error of VMM or guest is raised, and nothing is claimed
        then."""
        before = self._demands.get(container_id)
        self._demands[container_id] = (before or Demand()).updated(resources)
        try:
            async with self._lock:
                await self._grow(container_id)
        except BaseException:
            self.put_back(container_id, before)
            raise
        return before

    def put_back(self, container_id: str, demand: Demand | None) -> None:
        """As it was before a claim; None also when the container is no more."""
        if demand is None:
            self._demands.pop(container_id, None)
        else:
            self._demands[container_id] = demand

    async def _grow(self, container_id: str) -> None:
        wanted, before = needed(self._base, self._demands.values()).at_least(self._least), self.size
        target = wanted.at_least(self.size).at_most(self._most)
        without = [] if wanted.at_most(target) == wanted else [f"it can have {self._most}"]
        for grow in (self._add_memory, self._add_vcpus):
            try:
                await grow(target)
            except ResourceExhausted as error:
                without.append(str(error))
        if without:
            self._log.warning(
                "limits allow more than the VM has",
                container=container_id,
                wanted=wanted,
                vm=self.size,
                why="; ".join(without),
            )
        if self.size != self._used:
            await self._agent.online_cpu_mem(self.size.vcpus)
            self._used = self.size
            self._log.info("the VM has grown", container=container_id, before=before, now=self.size)

    async def _add_memory(self, target: Size) -> None:
        while (missing_mib := target.memory_mib - self.size.memory_mib) > 0:
            missing_mib += -missing_mib % self._block_mib
            step_mib = min(missing_mib, _down(self.size.memory_mib * _FACTOR, self._block_mib))
            grown = Size(self.size.memory_mib + step_mib, self.size.vcpus)
            try:
                await self._hypervisor.add_memory(step_mib)
            except NotTaken:
                self.size = grown  # it is there, and the next claim asks the guest again
                raise
            self.size = grown

    async def _add_vcpus(self, target: Size) -> None:
        while self.size.vcpus < target.vcpus:
            await self._hypervisor.add_vcpu()
            self.size = Size(self.size.memory_mib, self.size.vcpus + 1)


def _down(mib: int, block_mib: int) -> int:
    return mib // block_mib * block_mib
