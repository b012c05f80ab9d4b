"""A pod's agent, which keeps its pause container out of the guest as long as nobody needs it.

The pause container exists to hold the pod's namespaces. In a VM the guest holds them, so its rootfs, its process and
the half second that they cost are saved. Only a shared pid namespace needs a process to be its first, and an exec into
the pause container, or a change of its limits, needs a container: then it is made, before what needs it. To our
caller the difference does not show.
"""

from __future__ import annotations

import asyncio
import signal as signals
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shim import oci
from shim.agent.api import ContainerStats, Device, ProcessIds, StdioPorts, Storage
from shim.agent.kata import KataAgent
from shim.errors import NotFound, ShimError, Unavailable
from shim.ttrpc.channel import Channel

# What ends a process without handlers, of all that one would send to a pause container.
_FATAL = {signals.SIGKILL, signals.SIGTERM, signals.SIGINT, signals.SIGQUIT, signals.SIGHUP}


@dataclass(slots=True)
class _Pause:
    """The pause container: what it would be made of, and how it has ended."""

    container_id: str
    spec: Mapping[str, Any]
    storages: Sequence[Storage]
    devices: Sequence[Device]
    exit: asyncio.Future[int]
    in_guest: bool = False


class PodAgent(KataAgent):
    """As `KataAgent`, for the containers of a pod as for one that is alone."""

    def __init__(self, channel: Channel, call_s: float = 30.0) -> None:
        super().__init__(channel, call_s)
        self._pause: _Pause | None = None
        self._making = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    async def create_container(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        storages: Sequence[Storage],
        ports: StdioPorts | None,
        *,
        sandbox_pidns: bool,
        devices: Sequence[Device] = (),
    ) -> None:
        kind = oci.section(spec, "annotations").get(oci.KATA_CONTAINER_TYPE)
        if kind == oci.POD_SANDBOX and ports == StdioPorts():
            exit_ = asyncio.get_running_loop().create_future()
            self._pause = _Pause(container_id, spec, storages, devices, exit_)
            return
        if self._pause is not None:
            if sandbox_pidns:
                await self._make_pause(self._pause)
            spec = _with_sysctls(spec, self._pause.spec)
        await super().create_container(
            container_id, spec, storages, ports, sandbox_pidns=sandbox_pidns, devices=devices
        )

    async def start_container(self, container_id: str) -> None:
        if self._pause is None or self._pause.container_id != container_id:
            await super().start_container(container_id)

    async def remove_container(self, container_id: str) -> None:
        pause = self._pause
        if pause is None or pause.container_id != container_id:
            await super().remove_container(container_id)
            return
        self._pause = None
        if pause.in_guest:
            await super().remove_container(container_id)
        _end(pause, 128 + signals.SIGKILL)

    async def exec_process(
        self, ids: ProcessIds, process: Mapping[str, Any], ports: StdioPorts | None
    ) -> None:
        await self._need(ids.container_id)
        await super().exec_process(ids, process, ports)

    async def pause_container(self, container_id: str) -> None:
        await self._need(container_id)
        await super().pause_container(container_id)

    async def update_container(self, container_id: str, resources: Mapping[str, Any]) -> None:
        await self._need(container_id)
        await super().update_container(container_id, resources)

    async def stats_container(self, container_id: str) -> ContainerStats:
        if self._kept_out(container_id) is not None:
            return ContainerStats()  # what does not exist uses nothing
        return await super().stats_container(container_id)

    async def signal_process(self, ids: ProcessIds, signal: int, *, everyone: bool) -> None:
        pause = self._kept_out(ids.container_id)
        if pause is None:
            await super().signal_process(ids, signal, everyone=everyone)
        elif pause.exit.done():
            raise NotFound("the pause container has ended")
        elif signal in _FATAL:
            _end(pause, 128 + signal)

    async def wait_process(self, ids: ProcessIds) -> int:
        pause = self._pause
        if pause is None or (pause.container_id, "") != (ids.container_id, ids.exec_id):
            return await super().wait_process(ids)
        return await asyncio.shield(pause.exit)

    async def list_processes(self, container_id: str) -> Sequence[str]:
        if self._kept_out(container_id) is None:
            return await super().list_processes(container_id)
        return [""]

    async def resize_tty(self, ids: ProcessIds, rows: int, columns: int) -> None:
        if self._kept_out(ids.container_id) is None:
            await super().resize_tty(ids, rows, columns)

    async def close_stdin(self, ids: ProcessIds) -> None:
        if self._kept_out(ids.container_id) is None:
            await super().close_stdin(ids)

    async def aclose(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        if self._pause is not None and not self._pause.exit.done():
            self._pause.exit.set_exception(Unavailable("the connection to the agent is closed"))
            self._pause.exit.exception()  # there may be nobody who waits
        await super().aclose()

    def _kept_out(self, container_id: str) -> _Pause | None:
        """The pause container, if it has this id and is not in the guest."""
        pause = self._pause
        return pause if pause and pause.container_id == container_id and not pause.in_guest else None

    async def _need(self, container_id: str) -> None:
        """Have the pause container in the guest, if it is the one of this id."""
        if (pause := self._kept_out(container_id)) is not None:
            await self._make_pause(pause)

    async def _make_pause(self, pause: _Pause) -> None:
        async with self._making:
            if pause.in_guest or pause.exit.done():
                return
            ids = pause.container_id
            await super().create_container(ids, pause.spec, pause.storages, StdioPorts(), sandbox_pidns=False)
            pause.in_guest = True  # from now on it is the guest that ends it
            await super().start_container(ids)
            self._watch = asyncio.create_task(self._await_pause(pause), name="watch the pause container")

    async def _await_pause(self, pause: _Pause) -> None:
        try:
            _end(pause, await super().wait_process(ProcessIds(pause.container_id)))
        except ShimError as error:
            with suppress(asyncio.InvalidStateError):
                pause.exit.set_exception(error)
                pause.exit.exception()


def _end(pause: _Pause, code: int) -> None:
    if not pause.exit.done():
        pause.exit.set_result(code)


def _with_sysctls(spec: Mapping[str, Any], pause: Mapping[str, Any]) -> Mapping[str, Any]:
    """The container's spec with the kernel parameters of its pod's namespaces, which the pause container would
    set."""
    parameters = oci.section(pause, "linux", "sysctl")
    if not parameters:
        return spec
    linux = oci.section(spec, "linux")
    return {
        **spec,
        "linux": {**linux, "sysctl": {**parameters, **oci.section(linux, "sysctl")}},
    }
