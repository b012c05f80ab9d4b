"""The agent's RPCs over ttrpc: `grpc.AgentService` and `grpc.Health`, ours and the genuine kata-agent
alike, and `kata_py.guest.Guest`, which only ours has."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from shim import oci
from shim.agent.answer import Answers
from shim.agent.api import Agent, ContainerStats, Device, ProcessIds, StdioPorts, Storage
from shim.agent.network import interface_message, neighbour_message, route_message
from shim.agent.spec import cgroup_files, process_message, resources_message, spec_message
from shim.agent.stats import container_stats
from shim.errors import Internal, InvalidArgument, NotFound, ShimError, from_status
from shim.network.api import Interface, Neighbour, Route
from shim.pb import grpc
from shim.pb.kata_py import guest as pb_guest
from shim.ttrpc.channel import Channel

# CRI gives Delete 10 s for everything.
_MAX_REMOVE_S = 8.0
# containerd gives State and its collector of metrics 2 s, and Pids, when it comes back after a restart, 5 s.
_MAX_LOOK_S = 1.5
# Characters; runc's longest messages have some hundred.
_MAX_ERROR = 4096
_MAX_VERSION = 64
# For a NIC that was plugged in just now. runtime-rs tries ten times.
_LINK_TRIES = 30
# What ends the version of our agent (shim/guest/service.py).
_OUR_VERSION = "-py"

T = TypeVar("T")


class KataAgent(Agent):
    """One connection to the agent, which `aclose` closes.

    Every call has `call_s` seconds, but those that answer when a process does something: they have for ever.
    """

    def __init__(self, channel: Channel, call_s: float = 30.0, *, pause_s: float = 0.1) -> None:
        """`pause_s` is between tries of what the genuine agent may not be ready for."""
        self._channel, self._call_s, self._pause_s = channel, call_s, pause_s
        answers = Answers(channel)
        self._agent = grpc.AgentServiceStub(answers)  # type: ignore[arg-type]
        self._health = grpc.HealthStub(answers)  # type: ignore[arg-type]
        self._ours = False
        self._guest = pb_guest.GuestStub(answers)  # type: ignore[arg-type]

    async def check(self) -> str:
        request = grpc.CheckRequest()
        answer = await _bounded(self._health.check(request, timeout=self._call_s))
        if answer.status != grpc.HealthCheckResponseServingStatus.SERVING:
            raise Internal(f"the agent is not serving: {answer.status!r}")
        version = (await _bounded(self._health.version(request, timeout=self._call_s))).agent_version
        self._ours = version.endswith(_OUR_VERSION)
        return version[:_MAX_VERSION]

    @property
    def forgets_ended(self) -> bool:
        return not self._ours

    @property
    def loses_streams(self) -> bool:
        return not self._ours

    async def set_guest_date_time(self, now_ns: int) -> None:
        seconds, nanos = divmod(now_ns, 1_000_000_000)
        request = grpc.SetGuestDateTimeRequest(sec=seconds, usec=nanos // 1000)
        await _bounded(self._agent.set_guest_date_time(request, timeout=self._call_s))

    async def reseed_random(self, entropy: bytes) -> None:
        request = grpc.ReseedRandomDevRequest(data=entropy)
        await _bounded(self._agent.reseed_random_dev(request, timeout=self._call_s))

    async def create_sandbox(
        self,
        sandbox_id: str,
        hostname: str,
        dns: Sequence[str],
        storages: Sequence[Storage],
        *,
        shared_pidns: bool,
    ) -> None:
        request = grpc.CreateSandboxRequest(
            sandbox_id=sandbox_id,
            hostname=hostname,
            dns=list(dns),
            storages=[_storage(storage) for storage in storages],
            sandbox_pidns=shared_pidns,
        )
        await _bounded(self._agent.create_sandbox(request, timeout=self._call_s))

    async def update_interface(self, interface: Interface) -> None:
        request = grpc.UpdateInterfaceRequest(interface=interface_message(interface))
        # Ours waits until the NIC is there, the genuine one fails.
        tries = 1 if self._ours else _LINK_TRIES
        while True:
            tries -= 1
            try:
                await _bounded(self._agent.update_interface(request, timeout=self._call_s))
                return
            except Internal:
                if not tries:
                    raise
            await asyncio.sleep(self._pause_s)

    async def update_routes(self, routes: Sequence[Route]) -> None:
        request = grpc.UpdateRoutesRequest(routes=grpc.Routes([route_message(route) for route in routes]))
        await _bounded(self._agent.update_routes(request, timeout=self._call_s))

    async def add_arp_neighbours(self, neighbours: Sequence[Neighbour]) -> None:
        entries = grpc.ArpNeighbors([neighbour_message(neighbour) for neighbour in neighbours])
        request = grpc.AddArpNeighborsRequest(neighbors=entries)
        await _bounded(self._agent.add_arp_neighbors(request, timeout=self._call_s))

    async def forward_port(self, port: int) -> int:
        request = pb_guest.ForwardPortRequest(port=port)
        return (await _bounded(self._guest.forward_port(request, timeout=self._call_s))).vsock_port

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
        limits = self._further_limits(oci.section(spec, "linux", "resources"))
        if ports is not None:
            spec = {**spec, "annotations": {**oci.section(spec, "annotations"), oci.PASSFD: "true"}}
        request = grpc.CreateContainerRequest(
            container_id=container_id,
            devices=[_device(device) for device in devices],
            storages=[_storage(storage) for storage in storages],
            oci=spec_message(spec),
            sandbox_pidns=sandbox_pidns,
            **_ports(ports),
        )
        await _bounded(self._agent.create_container(request, timeout=self._call_s))
        await self._set_limits(container_id, limits)

    async def start_container(self, container_id: str) -> None:
        request = grpc.StartContainerRequest(container_id=container_id)
        await _bounded(self._agent.start_container(request, timeout=self._call_s))

    async def remove_container(self, container_id: str) -> None:
        request = grpc.RemoveContainerRequest(container_id=container_id)
        await _bounded(self._agent.remove_container(request, timeout=min(self._call_s, _MAX_REMOVE_S)))

    async def exec_process(
        self, ids: ProcessIds, process: Mapping[str, Any], ports: StdioPorts | None
    ) -> None:
        request = grpc.ExecProcessRequest(
            container_id=ids.container_id,
            exec_id=ids.exec_id,
            process=process_message(process),
            **_ports(ports),
        )
        await _bounded(self._agent.exec_process(request, timeout=self._call_s))

    async def signal_process(self, ids: ProcessIds, signal: int, *, everyone: bool) -> None:
        # The agent takes an init process's SIGKILL for everyone; other signals reach one process.
        exec_id = "" if everyone else ids.exec_id
        request = grpc.SignalProcessRequest(container_id=ids.container_id, exec_id=exec_id, signal=signal)
        await _bounded(self._agent.signal_process(request, timeout=self._call_s))

    async def wait_process(self, ids: ProcessIds) -> int:
        request = grpc.WaitProcessRequest(container_id=ids.container_id, exec_id=ids.exec_id)
        answer = await _bounded(self._agent.wait_process(request, timeout=None))
        return answer.status & 0xFF  # from the guest: anything

    async def pause_container(self, container_id: str) -> None:
        request = grpc.PauseContainerRequest(container_id=container_id)
        await _bounded(self._agent.pause_container(request, timeout=self._call_s))

    async def resume_container(self, container_id: str) -> None:
        request = grpc.ResumeContainerRequest(container_id=container_id)
        await _bounded(self._agent.resume_container(request, timeout=self._call_s))

    async def update_container(self, container_id: str, resources: Mapping[str, Any]) -> None:
        limits = self._further_limits(resources)
        request = grpc.UpdateContainerRequest(
            container_id=container_id, resources=resources_message(resources)
        )
        await _bounded(self._agent.update_container(request, timeout=self._call_s))
        await self._set_limits(container_id, limits)

    def _further_limits(self, resources: Mapping[str, Any]) -> dict[str, str]:
        """What Kata's messages cannot carry. InvalidArgument if the agent is the genuine one: nothing is dropped
        silently."""
        files = cgroup_files(resources)
        if files and not self._ours:
            raise InvalidArgument(f"resources: Kata's agent cannot set {', '.join(sorted(files))}")
        return files

    async def _set_limits(self, container_id: str, files: Mapping[str, str]) -> None:
        if files:
            request = pb_guest.SetLimitsRequest(container_id=container_id, files=dict(files))
            await _bounded(self._guest.set_limits(request, timeout=self._call_s))

    async def online_cpu_mem(self, nb_cpus: int) -> None:
        request = grpc.OnlineCpuMemRequest(nb_cpus=nb_cpus)
        await _bounded(self._agent.online_cpu_mem(request, timeout=self._call_s))

    async def stats_container(self, container_id: str) -> ContainerStats:
        request = grpc.StatsContainerRequest(container_id=container_id)
        timeout_s = min(self._call_s, _MAX_LOOK_S)
        return container_stats(await _bounded(self._agent.stats_container(request, timeout=timeout_s)))

    async def list_processes(self, container_id: str) -> Sequence[str]:
        request = pb_guest.ListProcessesRequest(container_id=container_id)
        timeout_s = min(self._call_s, _MAX_LOOK_S)
        answer = await _bounded(self._guest.list_processes(request, timeout=timeout_s))
        return [process.exec_id for process in answer.processes]

    async def oom_event(self) -> str:
        answer = await _bounded(self._agent.get_oom_event(grpc.GetOomEventRequest(), timeout=None))
        return answer.container_id

    async def resize_tty(self, ids: ProcessIds, rows: int, columns: int) -> None:
        request = grpc.TtyWinResizeRequest(
            container_id=ids.container_id, exec_id=ids.exec_id, row=rows, column=columns
        )
        await _bounded(self._agent.tty_win_resize(request, timeout=self._call_s))

    async def close_stdin(self, ids: ProcessIds) -> None:
        request = grpc.CloseStdinRequest(container_id=ids.container_id, exec_id=ids.exec_id)
        await _bounded(self._agent.close_stdin(request, timeout=self._call_s))

    async def end_unused_stdin(self, ids: ProcessIds, ports: StdioPorts | None) -> None:
        if ports is None or not self._ours:
            with contextlib.suppress(NotFound):  # it has ended meanwhile
                await self.close_stdin(ids)

    async def write_stdin(self, ids: ProcessIds, data: bytes) -> int:
        request = grpc.WriteStreamRequest(container_id=ids.container_id, exec_id=ids.exec_id, data=data)
        written = (await _bounded(self._agent.write_stdin(request, timeout=None))).len
        if written > len(data):
            raise Internal(f"the agent says it wrote {written} of {len(data)} bytes")
        return written

    async def read_stdout(self, ids: ProcessIds, size: int) -> bytes:
        return await self._read(self._agent.read_stdout, ids, size)

    async def read_stderr(self, ids: ProcessIds, size: int) -> bytes:
        return await self._read(self._agent.read_stderr, ids, size)

    async def _read(self, call: Callable[..., Any], ids: ProcessIds, size: int) -> bytes:
        request = grpc.ReadStreamRequest(container_id=ids.container_id, exec_id=ids.exec_id, len=size)
        data: bytes = (await _bounded(call(request, timeout=None))).data
        if len(data) > size:
            raise Internal(f"the agent sends {len(data)} bytes where {size} were asked for")
        return data

    async def aclose(self) -> None:
        await self._channel.aclose()


async def _bounded(answer: Awaitable[T]) -> T:
    """The agent's answer. Its errors go into logs and to users: their text is the guest's, so it is cut."""
    try:
        return await answer
    except ShimError as error:
        if len(str(error)) <= _MAX_ERROR:
            raise
        raise from_status(error.code, str(error)[:_MAX_ERROR] + " [cut]") from None


def _ports(ports: StdioPorts | None) -> dict[str, Any]:
    ports = ports or StdioPorts()
    return {"stdin_port": ports.stdin, "stdout_port": ports.stdout, "stderr_port": ports.stderr}


def _storage(storage: Storage) -> grpc.Storage:
    return grpc.Storage(
        driver=storage.driver,
        source=storage.source,
        fstype=storage.fstype,
        mount_point=storage.mount_point,
        options=list(storage.options),
        shared=storage.shared,
    )


def _device(device: Device) -> grpc.Device:
    return grpc.Device(id=device.id, type=device.type, container_path=device.container_path)
