"""Pause, resume, update, stats, pids and the OOM killer, as containerd sees them, on fakes."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest
from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.agent.api import ContainerStats, CpuUse, ProcessIds
from shim.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ShimError,
    Unavailable,
    Unimplemented,
    Unknown,
)
from shim.pb.containerd.runc.v1 import ProcessDetails
from shim.pb.containerd.task import v2
from shim.pb.containerd.v1.types import Status
from shim.task.usage import Usage, usage
from shim.value import replace
from tests.sandbox.stack import Stack, until, with_stack


async def pause(shim: Stack) -> None:
    await shim.task.pause(v2.PauseRequest(id="c1"))


async def resume(shim: Stack) -> None:
    await shim.task.resume(v2.ResumeRequest(id="c1"))


async def update(shim: Stack, resources: object) -> None:
    limits = AnyMessage(type_url="x", value=json.dumps(resources).encode())
    await shim.task.update(v2.UpdateTaskRequest(id="c1", resources=limits))


async def stats(shim: Stack) -> Usage:
    return usage((await shim.task.stats(v2.StatsRequest(id="c1"))).stats)


async def pids(shim: Stack) -> list[str]:
    """The exec ids, "" for the others; each with the one pid that there is."""
    found = (await shim.task.pids(v2.PidsRequest(id="c1"))).processes
    assert {process.pid for process in found} == {os.getpid()}
    return [ProcessDetails.FromString(process.info.value).exec_id for process in found]


# -- pause and resume ----------------------------------------------------------------------------------------


@with_stack
async def test_who_is_in_a_paused_container_is_paused(shim: Stack) -> None:
    await shim.run()
    for exec_id in ("running", "ended"):
        await shim.exec(exec_id)
        await shim.start(exec_id=exec_id)
    shim.agent.exit("c1", "ended")
    await shim.wait(exec_id="ended")
    await pause(shim)
    assert shim.agent.paused == {"c1"}
    for exec_id in ("", "running", "ended"):
        assert (await shim.state(exec_id=exec_id)).status == Status.PAUSED
    await resume(shim)
    assert shim.agent.paused == set()
    states = [(await shim.state(exec_id=exec_id)).status for exec_id in ("", "running", "ended")]
    assert states == [Status.RUNNING, Status.RUNNING, Status.STOPPED]
    assert shim.told()[-2:] == ["TaskPaused:c1", "TaskResumed:c1"]


@with_stack
async def test_an_exec_waits_for_the_resume(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")
    await pause(shim)
    with pytest.raises(Unknown, match="cannot exec in a paused state"):
        await shim.exec("e2")
    with pytest.raises(Unknown, match="paused container"):
        await shim.start(exec_id="e1")
    await resume(shim)
    await shim.start(exec_id="e1")  # the refusal has not used it up


@with_stack
async def test_a_pause_that_fails_leaves_it_running(shim: Stack) -> None:
    await shim.run()
    shim.agent.fail["pause_container"] = Internal("no freezer")
    with pytest.raises(Internal, match="no freezer"):
        await pause(shim)
    assert (await shim.state()).status == Status.RUNNING
    assert "TaskPaused:c1" not in shim.told()


@with_stack
async def test_an_end_during_the_pause_is_an_end(shim: Stack) -> None:
    await shim.run()
    shim.agent.hold["pause_container"] = asyncio.Event()
    pausing = asyncio.create_task(pause(shim))
    await until(lambda: "pause_container" in shim.agent.calls)
    shim.agent.exit("c1", code=3)
    await shim.wait()
    shim.agent.hold["pause_container"].set()
    await pausing
    assert (await shim.state()).status == Status.STOPPED
    assert shim.told()[-1] == "TaskExited:c1"


@with_stack
async def test_a_paused_container_can_be_killed_and_deleted(shim: Stack) -> None:
    await shim.run()
    await pause(shim)
    await shim.kill(9)
    assert await shim.wait() == 137
    assert (await shim.delete()).exit_status == 137
    assert shim.told()[-3:] == ["TaskPaused:c1", "TaskExited:c1", "TaskDeleted:c1"]


@with_stack
async def test_the_death_of_the_vm_ends_a_paused_container(shim: Stack) -> None:
    await shim.run()
    await pause(shim)
    shim.hypervisor.die()
    assert await shim.wait() == 137


@with_stack
async def test_a_pause_whose_caller_gives_up_is_known_to_be_one(shim: Stack) -> None:
    """Or nobody could resume what stands still."""
    await shim.run()
    shim.agent.hold["pause_container"] = asyncio.Event()
    with pytest.raises(DeadlineExceeded):
        await shim.task.pause(v2.PauseRequest(id="c1"), timeout=0.02)
    shim.agent.hold["pause_container"].set()
    await until(lambda: "TaskPaused:c1" in shim.told())
    assert shim.agent.paused == {"c1"}
    await resume(shim)
    assert shim.agent.paused == set()


# -- update --------------------------------------------------------------------------------------------------


@with_stack
async def test_limits_go_to_the_guest_without_what_is_the_host_s(shim: Stack) -> None:
    await shim.run()
    cpu = {"shares": 512, "cpus": "0-7", "mems": "0"}
    await update(shim, {"cpu": cpu, "memory": {"limit": 1}, "pids": {"limit": 2}, "blockIO": {"weight": 10}})
    assert shim.agent.limits["c1"] == {"cpu": {"shares": 512}, "memory": {"limit": 1}, "pids": {"limit": 2}}


@pytest.mark.parametrize(
    ("resources", "words"), [([], "resources: not a JSON object"), ({"cpu": []}, "cpu: not an object")]
)
def test_limits_of_the_wrong_shape_are_named(tmp_path: Path, resources: object, words: str) -> None:
    @with_stack
    async def run(shim: Stack) -> None:
        await shim.run()
        with pytest.raises(InvalidArgument, match=words):
            await update(shim, resources)
        assert shim.agent.limits == {}

    run(tmp_path)


# -- stats ---------------------------------------------------------------------------------------------------


@with_stack
async def test_stats_are_asked_for_once_in_a_while(shim: Stack) -> None:
    await shim.run()
    shim.agent.stats = ContainerStats(cpu=CpuUse(total_ns=7000))
    shim.agent.hold["stats_container"] = asyncio.Event()
    asking = [asyncio.create_task(stats(shim)) for _ in range(3)]
    await until(lambda: "stats_container" in shim.agent.calls)
    shim.agent.hold["stats_container"].set()
    assert [found.cpu_ns for found in await asyncio.gather(*asking)] == [7000] * 3
    assert shim.agent.calls.count("stats_container") == 1, "who asks at the same time shares the answer"
    shim.agent.stats = ContainerStats(cpu=CpuUse(total_ns=8000))
    assert (await stats(shim)).cpu_ns == 7000
    shim.sandbox.container("c1").cgroup._stats_at -= 10
    assert (await stats(shim)).cpu_ns == 8000


@with_stack
async def test_stats_are_there_until_delete_whatever_dies(shim: Stack) -> None:
    await shim.create()
    shim.agent.stats = ContainerStats(cpu=CpuUse(total_ns=7000))
    assert (await stats(shim)).cpu_ns == 7000
    await shim.start()
    shim.agent.exit("c1")
    await shim.wait()
    assert (await stats(shim)).cpu_ns == 7000
    shim.hypervisor.die()
    await until(lambda: shim.agent.calls[-1] == "aclose")
    shim.sandbox.container("c1").cgroup._stats_at -= 10
    assert (await stats(shim)).cpu_ns == 7000, "the last that is known"
    await shim.delete()
    with pytest.raises(NotFound):
        await stats(shim)


@with_stack
async def test_a_guest_that_does_not_answer_holds_up_nobody_else(shim: Stack) -> None:
    await shim.run()
    slow = ("stats_container", "list_processes", "update_container")
    shim.agent.hold.update({call: asyncio.Event() for call in slow})
    asking = [asyncio.ensure_future(work) for work in (stats(shim), pids(shim), update(shim, {}))]
    await until(lambda: set(slow) <= set(shim.agent.calls))
    assert (await shim.state()).status == Status.RUNNING
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    await shim.kill()
    assert await shim.wait() == 137
    await shim.delete()
    assert not any(work.done() for work in asking)
    for held in shim.agent.hold.values():
        held.set()
    await asyncio.gather(*asking)


@with_stack
async def test_nothing_is_made_up_when_the_vm_died_unasked(shim: Stack) -> None:
    await shim.run()
    shim.hypervisor.die()
    await until(lambda: shim.agent.calls[-1] == "aclose")
    with pytest.raises(Unavailable):
        await stats(shim)


@with_stack
async def test_a_failure_is_not_remembered(shim: Stack) -> None:
    await shim.run()
    shim.agent.fail["stats_container"] = Internal("not now")
    with pytest.raises(Internal, match="not now"):
        await stats(shim)
    del shim.agent.fail["stats_container"]
    assert (await stats(shim)).pids == 0


# -- pids ----------------------------------------------------------------------------------------------------


@with_stack
async def test_there_is_a_row_for_each_process_in_the_guest(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    shim.agent.processes = ["", "", "e1", "nobody"]
    assert await pids(shim) == ["", "", "e1", ""], "an exec that we know nothing of is none"


@pytest.mark.parametrize("error", [Unimplemented("method ListProcesses"), Unavailable("busy")])
def test_without_the_guest_s_list_there_are_the_processes_we_started(
    tmp_path: Path, error: ShimError
) -> None:
    @with_stack
    async def run(shim: Stack) -> None:
        await shim.run()
        for exec_id in ("e1", "e2"):
            await shim.exec(exec_id)
        await shim.start(exec_id="e2")
        shim.agent.fail["list_processes"] = error
        assert await pids(shim) == ["", "e2"]

    run(tmp_path)


@with_stack
async def test_pids_are_never_empty_before_delete(shim: Stack) -> None:
    shim.agent.processes = []
    await shim.create()
    assert await pids(shim) == [""]
    await shim.start()
    assert await pids(shim) == [""]
    shim.agent.exit("c1")
    await shim.wait()
    assert await pids(shim) == [""]
    await shim.delete()
    with pytest.raises(NotFound):
        await pids(shim)


# -- out of memory -------------------------------------------------------------------------------------------


@with_stack
async def test_out_of_memory_is_told_before_the_exit(shim: Stack) -> None:
    await shim.run()
    shim.agent.ooms.put_nowait("c1")
    shim.agent.exit("c1", code=137)
    assert await shim.wait() == 137
    assert shim.told()[-2:] == ["TaskOutOfMemory:c1", "TaskExited:c1"]
    assert (await stats(shim)).oom_kills == 1, "also when the agent does not count them"


@with_stack
async def test_a_kill_that_nobody_asked_for_waits_for_its_reason(shim: Stack) -> None:
    """The genuine agent tells of the process before it tells of the OOM killer."""
    await shim.run()
    shim.agent.exit("c1", code=137)
    await until(lambda: "wait_process" in shim.agent.calls)
    await asyncio.sleep(0.01)
    shim.agent.ooms.put_nowait("c1")
    await shim.wait()
    assert shim.told()[-2:] == ["TaskOutOfMemory:c1", "TaskExited:c1"]


@with_stack
async def test_a_kill_that_was_asked_for_waits_for_nothing(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    container = shim.sandbox.container("c1")
    container._endings._limits = replace(container._endings._limits, oom_grace_s=100)
    await shim.kill(9, all=True)
    assert await shim.wait() == 137
    assert (ProcessIds("c1"), 9, True) in shim.agent.signals
    assert shim.told()[-2:] == ["TaskExited:e1", "TaskExited:c1"]


@with_stack
async def test_news_behind_the_exit_and_of_nobody_are_dropped(shim: Stack) -> None:
    await shim.run()
    shim.agent.exit("c1")
    await shim.wait()
    told = shim.told()
    for container_id in ("c1", "nobody", "\ud800"):
        shim.agent.ooms.put_nowait(container_id)
    await until(shim.agent.ooms.empty)
    await shim.run("c2")
    assert shim.told() == [*told, "TaskCreated:c2", "TaskStarted:c2"]


@with_stack
async def test_a_guest_that_cries_without_end_is_not_passed_on(shim: Stack) -> None:
    await shim.run()
    for _ in range(5):
        shim.agent.ooms.put_nowait("c1")
    await until(shim.agent.ooms.empty)
    assert shim.told().count("TaskOutOfMemory:c1") == 1


@with_stack
async def test_an_agent_without_news_of_memory_is_no_trouble(shim: Stack) -> None:
    shim.agent.fail["oom_event"] = Unimplemented("GetOOMEvent")
    shim.agent.ooms.put_nowait("c1")
    await shim.run()
    shim.agent.exit("c1", code=137)
    assert await shim.wait() == 137


@with_stack
async def test_the_end_of_the_sandbox_makes_no_noise_about_memory(shim: Stack) -> None:
    await shim.run()
    await shim.kill(9)
    await shim.wait()
    await shim.delete()
    await shim.shutdown()
    assert "OOM" not in (shim.directory / "log").read_text()
