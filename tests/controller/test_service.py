"""The Sandbox service over a real ttrpc server, on fakes."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.agent.api import ContainerStats, MemoryUse, ProcessIds
from shim.controller.service import NOT_READY, READY, SandboxService
from shim.errors import AlreadyExists, FailedPrecondition, NotFound, ShimError, Unavailable
from shim.pb.containerd.runtime.sandbox import v1
from shim.pb.runtime.v1 import DnsConfig, PodSandboxConfig
from shim.task.usage import usage
from shim.ttrpc import memory
from shim.ttrpc.server import Server
from shim.ttrpc.service import from_grpclib
from tests.sandbox.stack import Stack, until, with_stack


class Api:
    """The client's end of the Sandbox service of a stack."""

    def __init__(self, stack: Stack) -> None:
        service = SandboxService(stack.sandbox, stack.directory / "etc", stack._on_shutdown)
        self.server = Server([from_grpclib(service)], stack.log)
        self.channel = memory.connect(self.server)
        self.stub = v1.SandboxStub(self.channel)

    async def create(self, **fields: Any) -> None:
        await self.stub.create_sandbox(v1.CreateSandboxRequest(**{"sandbox_id": "c1", **fields}))

    async def start(self) -> int:
        return (await self.stub.start_sandbox(v1.StartSandboxRequest("c1"))).pid

    async def status(self) -> v1.SandboxStatusResponse:
        return await self.stub.sandbox_status(v1.SandboxStatusRequest("c1"))

    async def stop(self) -> None:
        await self.stub.stop_sandbox(v1.StopSandboxRequest("c1", 10))

    async def wait(self) -> v1.WaitSandboxResponse:
        async with asyncio.timeout(5):
            return await self.stub.wait_sandbox(v1.WaitSandboxRequest("c1"))

    async def shutdown(self) -> None:
        await self.stub.shutdown_sandbox(v1.ShutdownSandboxRequest("c1"))

    async def aclose(self) -> None:
        await self.channel.aclose()
        await self.server.aclose()


def with_api(test: Callable[[Stack, Api], Awaitable[None]]) -> Callable[..., None]:
    async def run(stack: Stack) -> None:
        api = Api(stack)
        try:
            await test(stack, api)
        finally:
            await stack.sandbox.aclose()
            await api.aclose()

    return with_stack(run)


@with_api
async def test_a_pod_lives_without_containers(stack: Stack, api: Api) -> None:
    await api.create()
    assert (await api.status()).state == NOT_READY
    assert await api.start() == os.getpid()
    status = await api.status()
    assert (status.state, status.pid, status.created_at.year > 2000) == (READY, os.getpid(), True)
    await api.stub.ping_sandbox(v1.PingRequest("c1"))
    await stack.run("app")
    stack.agent.exit("app")
    await stack.wait("app")
    await stack.delete("app")
    await stack.shutdown()  # containerd asks after every container
    assert (await api.status()).state == READY and not stack.shut_down
    await api.stop()
    status = await api.status()
    assert (status.state, status.pid, status.exited_at.year > 2000) == (NOT_READY, 0, True)
    assert not stack.shut_down
    await api.shutdown()
    assert stack.shut_down


@with_api
async def test_containers_get_the_pod_s_files_where_they_have_none(stack: Stack, api: Api) -> None:
    config = PodSandboxConfig(hostname="web-0", dns_config=DnsConfig(servers=["192.0.2.53"]))
    await api.create(options=AnyMessage("runtime.v1.PodSandboxConfig", bytes(config)))
    await api.start()
    (stack.directory / "hosts").write_text("own")
    own = {"destination": "/etc/hosts", "type": "bind", "source": str(stack.directory / "hosts")}
    await stack.run("app", spec={"mounts": [own]})
    mounts = stack.agent.specs[ProcessIds("app")]["mounts"]
    places = [mount["destination"] for mount in mounts]
    assert places == ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm"]
    etc = stack.directory / "etc"
    assert (etc / "hostname").read_text() == "web-0\n"
    assert (etc / "resolv.conf").read_text() == "nameserver 192.0.2.53\n"
    assert stack.agent.hostname == "web-0"


@with_api
async def test_wait_answers_when_the_sandbox_is_stopped(stack: Stack, api: Api) -> None:
    await api.create()
    await api.start()
    waiting = asyncio.create_task(api.wait())
    await asyncio.sleep(0)
    await api.stop()
    assert (await waiting).exit_status == 0


@with_api
async def test_wait_answers_when_the_vm_dies(stack: Stack, api: Api) -> None:
    await api.create()
    await api.start()
    stack.hypervisor.die()
    assert (await api.wait()).exit_status == 137
    assert (await api.status()).state == NOT_READY
    with pytest.raises(Unavailable):
        await api.stub.ping_sandbox(v1.PingRequest("c1"))


@with_api
async def test_a_boot_that_fails_is_told_by_start_and_wait(stack: Stack, api: Api) -> None:
    stack.agent.fail["create_sandbox"] = Unavailable("no agent")
    await api.create()
    with pytest.raises(ShimError, match="no agent"):
        await api.start()
    assert (await api.wait()).exit_status == 255
    assert (await api.status()).state == NOT_READY


@with_api
async def test_containers_that_run_end_with_the_sandbox(stack: Stack, api: Api) -> None:
    await api.create()
    await api.start()
    await stack.run("app")
    await api.stop()
    assert await stack.wait("app") == 137
    await stack.delete("app")


@with_api
async def test_a_sandbox_is_created_once(stack: Stack, api: Api) -> None:
    await api.create()
    with pytest.raises(AlreadyExists):
        await api.create()


@with_api
async def test_start_needs_create_and_comes_before_stop(stack: Stack, api: Api) -> None:
    with pytest.raises(NotFound):
        await api.start()
    await api.create()
    await api.stop()
    with pytest.raises(FailedPrecondition):
        await api.start()


@with_api
async def test_stop_and_shutdown_are_idempotent(stack: Stack, api: Api) -> None:
    await api.create()
    await api.start()
    for _ in range(2):
        await api.stop()
    for _ in range(2):
        await api.shutdown()


@with_api
async def test_stop_cancels_a_boot(stack: Stack, api: Api) -> None:
    stack.agent.hold["create_sandbox"] = asyncio.Event()
    await api.create()
    starting = asyncio.create_task(api.start())
    await until(lambda: "create_sandbox" in stack.agent.calls)
    await api.stop()
    with pytest.raises(ShimError):
        await starting
    assert (await api.status()).state == NOT_READY


@with_api
async def test_metrics_are_the_containers_together(stack: Stack, api: Api) -> None:
    await api.create()
    await api.start()
    stack.agent.stats = ContainerStats(pids=3, memory=MemoryUse(usage=1 << 20))
    await stack.run("one")
    await stack.run("two")
    metric = (await api.stub.sandbox_metrics(v1.SandboxMetricsRequest("c1"))).metrics
    found = usage(metric.data)
    assert (metric.id, found.pids, found.memory_bytes) == ("c1", 6, 2 << 20)


@with_api
async def test_another_sandbox_s_id_is_not_found(stack: Stack, api: Api) -> None:
    with pytest.raises(NotFound, match="other"):
        await api.create(sandbox_id="other")
    with pytest.raises(NotFound, match="other"):
        await api.stub.sandbox_status(v1.SandboxStatusRequest("other"))


@with_api
async def test_the_platform_is_the_machine_s(stack: Stack, api: Api) -> None:
    found = (await api.stub.platform(v1.PlatformRequest("c1"))).platform
    assert (found.os, found.architecture) in (("linux", "amd64"), ("linux", "arm64"))
