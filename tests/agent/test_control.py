"""The calls about a container as a whole, against an agent that answers as it likes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from betterproto.lib.google.protobuf import Empty

from shim.agent.kata import KataAgent
from shim.errors import DeadlineExceeded, InvalidArgument, Unimplemented
from shim.pb import grpc
from shim.pb.kata_py import guest as pb_guest
from shim.ttrpc import memory
from shim.ttrpc.server import Server


class Agent(grpc.AgentServiceBase):
    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.ooms: asyncio.Queue[str] = asyncio.Queue()

    async def pause_container(self, pause_container_request: grpc.PauseContainerRequest) -> Empty:
        self.asked.append(("pause", pause_container_request.container_id))
        return Empty()

    async def resume_container(self, resume_container_request: grpc.ResumeContainerRequest) -> Empty:
        self.asked.append(("resume", resume_container_request.container_id))
        return Empty()

    async def create_container(self, create_container_request: grpc.CreateContainerRequest) -> Empty:
        self.asked.append(create_container_request)
        return Empty()

    async def update_container(self, update_container_request: grpc.UpdateContainerRequest) -> Empty:
        self.asked.append(update_container_request)
        return Empty()

    async def online_cpu_mem(self, online_cpu_mem_request: grpc.OnlineCpuMemRequest) -> Empty:
        self.asked.append(online_cpu_mem_request)
        return Empty()

    async def stats_container(self, stats_container_request: grpc.StatsContainerRequest) -> Any:
        if stats_container_request.container_id == "slow":
            await asyncio.Event().wait()
        pids = grpc.PidsStats(current=3)
        return grpc.StatsContainerResponse(cgroup_stats=grpc.CgroupStats(pids_stats=pids))

    async def get_oom_event(self, get_oom_event_request: grpc.GetOomEventRequest) -> grpc.OomEvent:
        return grpc.OomEvent(await self.ooms.get())


class Guest(pb_guest.GuestBase):
    def __init__(self) -> None:
        self.limits: list[Any] = []

    async def set_limits(self, set_limits_request: pb_guest.SetLimitsRequest) -> Any:
        self.limits.append(set_limits_request)
        return pb_guest.SetLimitsResponse()

    async def list_processes(self, list_processes_request: pb_guest.ListProcessesRequest) -> Any:
        return pb_guest.ListProcessesResponse(
            [pb_guest.Process(7), pb_guest.Process(8, "e1"), pb_guest.Process(9)]
        )


def with_agent(*services: Any) -> Any:
    def decorate(test: Any) -> Any:
        def run() -> None:
            async def main() -> None:
                server = Server(list(services))
                agent = KataAgent(memory.connect(server), 5.0)
                async with asyncio.timeout(10):
                    await test(agent)
                await agent.aclose()
                await server.aclose()

            asyncio.run(main())

        return run

    return decorate


def test_a_container_is_named_in_each_call() -> None:
    agent = Agent()

    @with_agent(agent)
    async def run(client: KataAgent) -> None:
        await client.pause_container("c1")
        await client.resume_container("c1")
        assert agent.asked == [("pause", "c1"), ("resume", "c1")]
        assert (await client.stats_container("c1")).pids == 3
        waiting = asyncio.create_task(client.oom_event())
        agent.ooms.put_nowait("c1")
        assert await waiting == "c1"

    run()


def test_what_was_plugged_in_is_put_to_use_as_kata_s_runtimes_ask_for_it() -> None:
    """All CPUs that there are to be, not how many more; and memory, too."""
    agent = Agent()

    @with_agent(agent)
    async def run(client: KataAgent) -> None:
        await client.online_cpu_mem(3)
        assert agent.asked == [grpc.OnlineCpuMemRequest(wait=False, nb_cpus=3, cpu_only=False)]

    run()


def test_limits_are_the_message_s_and_a_bad_one_is_named() -> None:
    agent = Agent()

    @with_agent(agent)
    async def run(client: KataAgent) -> None:
        limits = {
            "memory": {"limit": -1, "reservation": 5},
            "cpu": {"quota": 50000, "period": 100000, "shares": 2},
            "pids": {"limit": 32},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        }
        await client.update_container("c1", limits)
        sent = agent.asked[0]
        assert sent.container_id == "c1"
        assert (sent.resources.memory.limit, sent.resources.memory.reservation) == (-1, 5)
        assert (sent.resources.cpu.quota, sent.resources.cpu.period, sent.resources.cpu.shares) == (
            50000,
            100000,
            2,
        )
        assert sent.resources.pids.limit == 32
        assert sent.resources.hugepage_limits[0].pagesize == "2MB"
        for resources, words in [
            ({"memory": {"limit": "64M"}}, r"resources\.memory\.limit: not a whole number"),
            ({"cpu": {"shares": -1}}, r"resources\.cpu\.shares: -1 is not between"),
            ({"pids": []}, r"resources\.pids: not an object"),
            ({"cpu": {"burst": "1"}}, r"resources\.cpu\.burst: not a whole number"),
            ({"unified": {"memory.high": 1}}, r"resources\.unified: not an object of strings"),
            ({"unified": {"memory.high": "1"}}, r"Kata's agent cannot set memory\.high"),
        ]:
            with pytest.raises(InvalidArgument, match=words):
                await client.update_container("c1", resources)
        assert len(agent.asked) == 1

    run()


def test_limits_that_kata_s_messages_have_no_field_for_go_to_our_agent() -> None:
    agent, guest = Agent(), Guest()

    @with_agent(agent, guest)
    async def run(client: KataAgent) -> None:
        client._ours = True
        cpu = {"quota": 50000, "burst": 10000, "idle": 1}
        await client.update_container("c1", {"cpu": cpu, "unified": {"memory.high": "max"}})
        assert agent.asked[0].resources.cpu.quota == 50000
        (sent,) = guest.limits
        wanted = {"cpu.max.burst": "10000", "cpu.idle": "1", "memory.high": "max"}
        assert (sent.container_id, sent.files) == ("c1", wanted)
        await client.update_container("c1", {"cpu": {"quota": 1000}})
        assert len(guest.limits) == 1, "no call without need"
        spec = {"linux": {"resources": {"unified": {"memory.low": "4096"}}}}
        await client.create_container("c2", spec, (), None, sandbox_pidns=False)
        assert (guest.limits[1].container_id, guest.limits[1].files) == ("c2", {"memory.low": "4096"})
        client._ours = False
        with pytest.raises(InvalidArgument, match=r"Kata's agent cannot set memory\.low"):
            await client.create_container("c2", spec, (), None, sandbox_pidns=False)
        assert len(agent.asked) == 3, "two updates and one container"

    run()


def test_numbers_that_do_not_come_are_not_waited_for_longer_than_containerd_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shim.agent.kata._MAX_LOOK_S", 0.02)

    @with_agent(Agent())
    async def run(client: KataAgent) -> None:
        with pytest.raises(DeadlineExceeded):
            await client.stats_container("slow")

    run()


def test_processes_are_listed_by_the_exec_that_they_are() -> None:
    @with_agent(Agent(), Guest())
    async def run(client: KataAgent) -> None:
        assert await client.list_processes("c1") == ["", "e1", ""]

    run()


def test_the_genuine_agent_lists_no_processes() -> None:
    @with_agent(Agent())
    async def run(client: KataAgent) -> None:
        with pytest.raises(Unimplemented):
            await client.list_processes("c1")

    run()
