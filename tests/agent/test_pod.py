"""A pod's pause container: it behaves as one without being in the guest, until somebody needs it there."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from betterproto.lib.google.protobuf import Empty

from shim import oci
from shim.agent.api import ContainerStats, ProcessIds, StdioPorts
from shim.agent.pod import PodAgent
from shim.errors import NotFound, Unavailable
from shim.pb import grpc
from shim.ttrpc import memory
from shim.ttrpc.server import Server

PAUSE, APP = ProcessIds("pod"), ProcessIds("app")


class Guest(grpc.AgentServiceBase):
    """Notes who asked for what; the processes in it end when `ended` is set."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.created: dict[str, grpc.CreateContainerRequest] = {}
        self.ended = asyncio.Event()

    async def create_container(self, create_container_request: grpc.CreateContainerRequest) -> Empty:
        self.calls.append(f"create {create_container_request.container_id}")
        self.created[create_container_request.container_id] = create_container_request
        return Empty()

    async def start_container(self, start_container_request: grpc.StartContainerRequest) -> Empty:
        self.calls.append(f"start {start_container_request.container_id}")
        return Empty()

    async def remove_container(self, remove_container_request: grpc.RemoveContainerRequest) -> Empty:
        self.calls.append(f"remove {remove_container_request.container_id}")
        return Empty()

    async def signal_process(self, signal_process_request: grpc.SignalProcessRequest) -> Empty:
        self.calls.append(f"signal {signal_process_request.container_id}")
        return Empty()

    async def exec_process(self, exec_process_request: grpc.ExecProcessRequest) -> Empty:
        self.calls.append(f"exec {exec_process_request.container_id}")
        return Empty()

    async def update_container(self, update_container_request: grpc.UpdateContainerRequest) -> Empty:
        self.calls.append(f"update {update_container_request.container_id}")
        return Empty()

    async def pause_container(self, pause_container_request: grpc.PauseContainerRequest) -> Empty:
        self.calls.append(f"pause {pause_container_request.container_id}")
        return Empty()

    async def wait_process(self, wait_process_request: grpc.WaitProcessRequest) -> grpc.WaitProcessResponse:
        await self.ended.wait()
        return grpc.WaitProcessResponse(status=3)


def spec(kind: str, **linux: Any) -> dict[str, Any]:
    return {"annotations": {oci.KATA_CONTAINER_TYPE: kind}, "process": {"args": ["x"]}, "linux": linux}


async def make_pause(agent: PodAgent, **linux: Any) -> None:
    await agent.create_container("pod", spec(oci.POD_SANDBOX, **linux), (), StdioPorts(), sandbox_pidns=False)
    await agent.start_container("pod")


async def make_app(agent: PodAgent, *, shared: bool, **linux: Any) -> None:
    await agent.create_container(
        "app", spec(oci.POD_CONTAINER, **linux), (), StdioPorts(), sandbox_pidns=shared
    )


Body = Callable[[PodAgent, Guest], Awaitable[None]]


def with_agent(body: Body) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            guest = Guest()
            server = Server([guest])
            agent = PodAgent(memory.connect(server), 5.0)
            async with asyncio.timeout(10):
                await body(agent, guest)
            await agent.aclose()
            await server.aclose()

        asyncio.run(main())

    run.__name__, run.__doc__ = body.__name__, body.__doc__
    return run


@with_agent
async def test_it_never_reaches_the_guest_when_nobody_needs_it(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent)
    await make_app(agent, shared=False)
    waiting = asyncio.create_task(agent.wait_process(PAUSE))
    await agent.signal_process(PAUSE, signal.SIGWINCH, everyone=False)
    await asyncio.sleep(0)
    assert not waiting.done()
    await agent.signal_process(PAUSE, signal.SIGKILL, everyone=True)
    assert await waiting == 137
    with pytest.raises(NotFound):
        await agent.signal_process(PAUSE, signal.SIGKILL, everyone=True)
    await agent.remove_container("pod")
    assert guest.calls == ["create app"]


@with_agent
async def test_removing_it_ends_it(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent)
    waiting = asyncio.create_task(agent.wait_process(PAUSE))
    await asyncio.sleep(0)
    await agent.remove_container("pod")
    assert await waiting == 137


@with_agent
async def test_a_shared_pid_namespace_has_it_as_its_first(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent)
    await make_app(agent, shared=True)
    assert guest.calls == ["create pod", "start pod", "create app"]
    assert not guest.created["pod"].sandbox_pidns and guest.created["app"].sandbox_pidns
    await agent.signal_process(PAUSE, signal.SIGKILL, everyone=True)
    guest.ended.set()
    assert await agent.wait_process(PAUSE) == 3
    await agent.remove_container("pod")
    assert guest.calls[3:] == ["signal pod", "remove pod"]


@with_agent
async def test_two_containers_that_need_it_at_once_make_it_once(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent)
    await asyncio.gather(make_app(agent, shared=True), make_app(agent, shared=True))
    assert guest.calls.count("create pod") == 1


@with_agent
async def test_an_exec_into_it_makes_it(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent)
    await agent.exec_process(ProcessIds("pod", "e1"), {"args": ["sh"]}, StdioPorts())
    assert guest.calls == ["create pod", "start pod", "exec pod"]


@with_agent
async def test_the_pod_s_kernel_parameters_are_its_containers(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent, sysctl={"net.a": "1", "kernel.b": "2"})
    await make_app(agent, shared=False, sysctl={"kernel.b": "3"})
    assert guest.created["app"].oci.linux.sysctl == {"net.a": "1", "kernel.b": "3"}


@with_agent
async def test_a_pause_container_with_streams_is_one_like_any_other(agent: PodAgent, guest: Guest) -> None:
    ports = StdioPorts(0, 5, 0)
    await agent.create_container("pod", spec(oci.POD_SANDBOX), (), ports, sandbox_pidns=False)
    assert guest.calls == ["create pod"]


@with_agent
async def test_its_wait_ends_with_the_connection(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent)
    waiting = asyncio.create_task(agent.wait_process(PAUSE))
    await asyncio.sleep(0)
    await agent.aclose()
    with pytest.raises(Unavailable):
        await waiting


@with_agent
async def test_outside_of_the_guest_it_uses_nothing(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent)
    assert await agent.stats_container("pod") == ContainerStats()
    assert guest.calls == []


@with_agent
async def test_a_change_of_its_limits_makes_it(agent: PodAgent, guest: Guest) -> None:
    await make_pause(agent)
    await agent.update_container("pod", {"pids": {"limit": 9}})
    await agent.pause_container("pod")
    assert guest.calls == ["create pod", "start pod", "update pod", "pause pod"]
