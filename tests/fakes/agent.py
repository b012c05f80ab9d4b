"""An agent without a guest: it remembers what was asked, and processes end when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from shim.agent.api import ContainerStats, Device, ProcessIds, StdioPorts, Storage
from shim.errors import NotFound, ShimError, Unavailable
from shim.network.api import Interface, Neighbour, Route


class FakeAgent:
    """Implements `agent.api.Agent`.

    `fail` maps the name of a method to the error it raises; `hold` to an event it waits for first. `calls` lists
    the methods in order, `ports` and `specs` what processes were made with. `ooms` is where a test puts the ids of
    containers that were out of memory. A TCP port is forwarded to the vsock port with 10000 added.
    """

    def __init__(self) -> None:
        self.fail: dict[str, ShimError] = {}
        self.hold: dict[str, asyncio.Event] = {}
        self.calls: list[str] = []
        self.storages: list[Storage] = []
        self.container_storages: list[Storage] = []
        self.devices: list[Device] = []
        self.hostname = ""
        self.specs: dict[ProcessIds, Mapping[str, Any]] = {}
        self.ports: dict[ProcessIds, StdioPorts | None] = {}
        self.sizes: dict[ProcessIds, tuple[int, int]] = {}
        self.signals: list[tuple[ProcessIds, int, bool]] = []
        self.interfaces: list[Interface] = []
        self.routes: list[Route] = []
        self.neighbours: list[Neighbour] = []
        self.paused: set[str] = set()
        self.limits: dict[str, Mapping[str, Any]] = {}
        self.nb_cpus = 0
        self.stats = ContainerStats()
        self.processes: list[str] = [""]
        self.ooms: asyncio.Queue[str] = asyncio.Queue()
        self.forgets_ended = self.loses_streams = False
        self.input: dict[ProcessIds, bytearray] = {}  # by write_stdin
        self.closed: set[ProcessIds] = set()  # by close_stdin
        self._output: dict[tuple[ProcessIds, str], bytearray] = {}
        self._forgotten: set[ProcessIds] = set()  # whose exit was told
        self._news = asyncio.Event()  # replaced by the next after every change
        self._exits: dict[ProcessIds, asyncio.Future[int]] = {}
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def exit(self, container_id: str, exec_id: str = "", code: int = 0) -> None:
        """A process ends."""
        exit_ = self._exits[ProcessIds(container_id, exec_id)]
        if not exit_.done():
            exit_.set_result(code)
            self._tell()

    def lose(self) -> None:
        """The connection breaks: every call fails, those that wait at once."""
        if not self._lost.done():
            self._lost.set_exception(Unavailable("ttrpc: closed"))
            self._lost.exception()
            self._tell()

    async def check(self) -> str:
        await self._do("check")
        return "fake"

    async def set_guest_date_time(self, now_ns: int) -> None:
        await self._do("set_guest_date_time")

    async def reseed_random(self, entropy: bytes) -> None:
        await self._do("reseed_random")

    async def create_sandbox(
        self,
        sandbox_id: str,
        hostname: str,
        dns: Sequence[str],
        storages: Sequence[Storage],
        *,
        shared_pidns: bool,
    ) -> None:
        self.hostname, self.storages = hostname, list(storages)
        await self._do("create_sandbox")

    async def update_interface(self, interface: Interface) -> None:
        await self._do("update_interface")
        self.interfaces.append(interface)

    async def update_routes(self, routes: Sequence[Route]) -> None:
        await self._do("update_routes")
        self.routes += routes

    async def add_arp_neighbours(self, neighbours: Sequence[Neighbour]) -> None:
        await self._do("add_arp_neighbours")
        self.neighbours += neighbours

    async def forward_port(self, port: int) -> int:
        await self._do("forward_port")
        return 10000 + port

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
        self.container_storages, self.devices = list(storages), list(devices)
        await self._make("create_container", ProcessIds(container_id), spec, ports)

    async def start_container(self, container_id: str) -> None:
        await self._do("start_container")

    async def remove_container(self, container_id: str) -> None:
        await self._do("remove_container")
        for ids in list(self._exits):
            if ids.container_id == container_id:
                self.exit(*self._key(ids), code=137)

    async def exec_process(
        self, ids: ProcessIds, process: Mapping[str, Any], ports: StdioPorts | None
    ) -> None:
        await self._make("exec_process", ids, process, ports)

    async def signal_process(self, ids: ProcessIds, signal: int, *, everyone: bool) -> None:
        self.signals.append((ids, signal, everyone))
        await self._do("signal_process")
        if self._exits[ids].done():
            raise NotFound("no such process")
        victims = [i for i in self._exits if i.container_id == ids.container_id] if everyone else [ids]
        if signal == 9:
            for victim in victims:
                self.exit(*self._key(victim), code=137)

    async def wait_process(self, ids: ProcessIds) -> int:
        self.calls.append("wait_process")
        await asyncio.wait([self._exits[ids], self._lost], return_when=asyncio.FIRST_COMPLETED)
        if self._lost.done():
            self._lost.result()
        self._forgotten.add(ids)
        return self._exits[ids].result()

    async def pause_container(self, container_id: str) -> None:
        await self._do("pause_container")
        self.paused.add(container_id)

    async def resume_container(self, container_id: str) -> None:
        await self._do("resume_container")
        self.paused.discard(container_id)

    async def update_container(self, container_id: str, resources: Mapping[str, Any]) -> None:
        await self._do("update_container")
        self.limits[container_id] = resources

    async def online_cpu_mem(self, nb_cpus: int) -> None:
        await self._do("online_cpu_mem")
        self.nb_cpus = nb_cpus

    async def stats_container(self, container_id: str) -> ContainerStats:
        await self._do("stats_container")
        return self.stats

    async def list_processes(self, container_id: str) -> Sequence[str]:
        await self._do("list_processes")
        return self.processes

    async def oom_event(self) -> str:
        event = asyncio.ensure_future(self.ooms.get())
        try:
            await asyncio.wait([event, self._lost], return_when=asyncio.FIRST_COMPLETED)
        finally:
            event.cancel()
        if "oom_event" in self.fail:
            raise self.fail["oom_event"]
        if self._lost.done():
            self._lost.result()
        return event.result()

    async def resize_tty(self, ids: ProcessIds, rows: int, columns: int) -> None:
        await self._do("resize_tty")
        self.sizes[ids] = (rows, columns)

    async def close_stdin(self, ids: ProcessIds) -> None:
        await self._do("close_stdin")
        self.closed.add(ids)

    async def end_unused_stdin(self, ids: ProcessIds, ports: StdioPorts | None) -> None:
        await self._do("end_unused_stdin")
        if ports is None:
            self.closed.add(ids)

    async def write_stdin(self, ids: ProcessIds, data: bytes) -> int:
        await self._do("write_stdin")
        taken = data[:50_000]  # as a pipe that is nearly full
        self.input.setdefault(ids, bytearray()).extend(taken)
        return len(taken)

    def print(self, ids: ProcessIds, name: str, data: bytes) -> None:
        """The process writes to "stdout" or "stderr", for an RPC to fetch."""
        self._output.setdefault((ids, name), bytearray()).extend(data)
        self._tell()

    def unread(self, ids: ProcessIds, name: str) -> int:
        return len(self._output.get((ids, name), b""))

    async def read_stdout(self, ids: ProcessIds, size: int) -> bytes:
        return await self._read(ids, "stdout", size)

    async def read_stderr(self, ids: ProcessIds, size: int) -> bytes:
        return await self._read(ids, "stderr", size)

    async def _read(self, ids: ProcessIds, name: str, size: int) -> bytes:
        await self._do(f"read_{name}")
        while True:
            if self._lost.done():
                self._lost.result()
            if self.forgets_ended and ids in self._forgotten:
                raise NotFound("no such process")
            held = self._output.get((ids, name), bytearray())
            if held or self._exits[ids].done():
                data = bytes(held[:size])
                del held[:size]
                return data
            await self._news.wait()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def aclose(self) -> None:
        self.calls.append("aclose")
        self.lose()

    async def _make(
        self, call: str, ids: ProcessIds, spec: Mapping[str, Any], ports: StdioPorts | None
    ) -> None:
        await self._do(call)
        self.specs[ids], self.ports[ids] = spec, ports
        self._exits[ids] = asyncio.get_running_loop().create_future()

    async def _do(self, call: str) -> None:
        self.calls.append(call)
        if self._lost.done():
            self._lost.result()
        if call in self.hold:
            held = asyncio.ensure_future(self.hold[call].wait())
            try:
                await asyncio.wait([held, self._lost], return_when=asyncio.FIRST_COMPLETED)
            finally:
                held.cancel()
            if self._lost.done():
                self._lost.result()
        if call in self.fail:
            raise self.fail[call]

    @staticmethod
    def _key(ids: ProcessIds) -> tuple[str, str]:
        return ids.container_id, ids.exec_id
