"""What is asked of a container as a whole: to stand still, its limits, what it uses and what runs in it.

Pausing shares the container's lock with its start and delete. It runs to its end even if the caller goes away, as a
change of limits does: what guest and host believe must not part. The others are asked at any time, often, and by
callers with little patience, so numbers that are a moment old answer for everybody who asks meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shim.agent.api import ContainerStats
from shim.errors import ShimError, Unavailable, Unknown
from shim.log import Log
from shim.sandbox import transforms
from shim.sandbox.background import Background
from shim.sandbox.endings import Endings
from shim.sandbox.events import Emit, TaskPaused, TaskResumed
from shim.sandbox.guest import Guest, Limits
from shim.sandbox.process import Process
from shim.sandbox.states import Event, advance
from shim.value import replace


class Cgroup:
    """Of one container. `booted` gives the guest or raises what the container raises without one."""

    def __init__(
        self,
        init: Process,
        execs: Mapping[str, Process],
        endings: Endings,
        lock: asyncio.Lock,
        *,
        booted: Callable[[], Guest],
        emit: Emit,
        background: Background,
        limits: Limits,
        log: Log,
    ) -> None:
        self._id = init.ids.container_id
        self._init, self._execs, self._endings, self._lock = init, execs, endings, lock
        self._booted, self._emit, self._background = booted, emit, background
        self._limits, self._log = limits, log
        self._asking: asyncio.Task[ContainerStats] | None = None
        self._stats: ContainerStats | None = None
        self._stats_at = 0.0

    async def pause(self) -> None:
        """Every process stands still when this returns."""
        await self._background.finish(self._pause(), f"pause {self._id}")

    async def _pause(self) -> None:
        async with self._lock:
            advance(self._init.state, Event.PAUSE)
            await self._booted().agent.pause_container(self._id)
            if self._init.exit is None:
                self._init.advance(Event.PAUSE)
                self._emit(TaskPaused(self._id))

    async def resume(self) -> None:
        await self._background.finish(self._resume(), f"resume {self._id}")

    async def _resume(self) -> None:
        async with self._lock:
            advance(self._init.state, Event.RESUME)
            await self._booted().agent.resume_container(self._id)
            if self._init.exit is None:
                self._init.advance(Event.RESUME)
                self._emit(TaskResumed(self._id))

    async def update(self, resources: Mapping[str, Any]) -> None:
        """Change its limits, after the VM has what they allow. InvalidArgument names what is wrong in `resources`, the
        runtime spec's object."""
        await self._background.finish(self._update(resources), f"update {self._id}")

    async def _update(self, resources: Mapping[str, Any]) -> None:
        if self._init.exit is not None:
            raise Unknown("cannot update a stopped container")
        guest = self._booted()
        before = await guest.capacity.claim(self._id, resources)
        try:
            await guest.agent.update_container(self._id, transforms.guest_resources(resources))
        except BaseException:
            guest.capacity.put_back(self._id, before)
            raise

    async def stats(self) -> ContainerStats:
        """What it uses; `stats_age_s` old at most. When the VM has died, what was last known."""
        guest = self._booted()
        now = asyncio.get_running_loop().time()
        if self._stats is not None and now - self._stats_at < self._limits.stats_age_s:
            return self._stats
        if self._asking is None:
            self._asking = self._background.spawn(self._ask(guest), f"stats {self._id}")
        try:
            return await asyncio.shield(self._asking)
        except Unavailable:
            if self._stats is None:
                raise
            return self._stats

    async def _ask(self, guest: Guest) -> ContainerStats:
        try:
            stats = await guest.agent.stats_container(self._id)
        finally:
            self._asking = None
        # The genuine agent tells of the OOM killer by its events only.
        kills = max(stats.memory_events.get("oom_kill", 0), self._endings.oom_kills)
        self._stats = replace(stats, memory_events={**stats.memory_events, "oom_kill": kills})
        self._stats_at = asyncio.get_running_loop().time()
        return self._stats

    async def processes(self) -> Sequence[str]:
        """For each process that runs in it the id of the exec it is, "" for all others. Never empty: containerd
        takes a task without processes for dead. When the guest does not say, those that were started by us."""
        live = [process.ids.exec_id for process in self._execs.values() if process.live]
        if not self._init.live:
            return [""]
        try:
            found = await self._booted().agent.list_processes(self._id)
        except ShimError as error:
            self._log.debug("processes unknown", error=error)
            return ["", *live]
        return [exec_id if exec_id in live else "" for exec_id in found] or ["", *live]
