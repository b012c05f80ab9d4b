"""Pause, resume, update, stats and the list of processes: the RPCs on a fake crun and a directory of cgroup files."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import pytest

from shim import errors

from .loop import eventually
from .test_service import Agent, Play, play

__all__ = ["play"]


def make_cgroup(cgroups: Path) -> Path:
    group = cgroups / "kata" / "c1"
    group.mkdir(parents=True)
    (group / "cgroup.events").write_text("frozen 0\n")
    (group / "memory.events").write_text("oom_kill 0\n")
    return group


async def remove(agent: Agent) -> None:
    """The kernel would kill what is left in the cgroup; a directory does not."""
    with contextlib.suppress(errors.NotFound):
        agent.sandbox.container("c1").process("e").signal(9)
        await agent.wait("c1", "e")
    await agent.call("RemoveContainer", container_id="c1")


async def pause(agent: Agent, group: Path) -> None:
    pausing = asyncio.create_task(agent.call("PauseContainer", container_id="c1"))
    await eventually((group / "cgroup.freeze").exists)
    (group / "cgroup.events").write_text("frozen 1\n")
    await pausing


def test_a_paused_container_takes_no_exec_until_it_is_resumed(play: Play, cgroups: Path) -> None:
    group = make_cgroup(cgroups)

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        await pause(agent, group)
        program = {"container_id": "c1", "exec_id": "e", "process": {"Args": ["true"]}}
        with pytest.raises(errors.FailedPrecondition, match="paused"):
            await agent.call("ExecProcess", **program)
        await agent.call("ResumeContainer", container_id="c1")
        assert (group / "cgroup.freeze").read_text() == "0"
        await agent.call("ExecProcess", **program)
        assert await agent.wait("c1", "e") == 0
        await remove(agent)

    play(scenario)


def test_a_pause_waits_for_an_exec_that_is_being_started(play: Play, cgroups: Path) -> None:
    """A crun that is in the cgroup already would be frozen with it."""
    group = make_cgroup(cgroups)

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        process = {"Args": ["sleep", "100"]}
        starting = asyncio.create_task(
            agent.call("ExecProcess", container_id="c1", exec_id="e", process=process)
        )
        await asyncio.sleep(0)
        pausing = asyncio.create_task(pause(agent, group))
        await eventually((group / "cgroup.freeze").exists)
        assert agent.sandbox.container("c1").process("e").pid, "started before anything is frozen"
        await starting
        await pausing
        await remove(agent)

    play(scenario)


def test_what_has_ended_cannot_be_paused_or_updated(play: Play, cgroups: Path) -> None:
    make_cgroup(cgroups)

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["true"])
        await agent.wait("c1")
        for method in ("PauseContainer", "UpdateContainer"):
            with pytest.raises(errors.FailedPrecondition, match="has ended"):
                await agent.call(method, container_id="c1")
            with pytest.raises(errors.NotFound):
                await agent.call(method, container_id="c2")
        await remove(agent)

    play(scenario)


def test_limits_reach_crun_as_the_runtime_spec_has_them(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        limits = {"Memory": {"Limit": 1 << 26}, "CPU": {"Quota": 50000, "Period": 100000}, "Pids": {}}
        await agent.call("UpdateContainer", container_id="c1", resources=limits)
        applied = json.loads((agent.directory / "state/c1.limits").read_text())
        assert applied == {"memory": {"limit": 1 << 26}, "cpu": {"quota": 50000, "period": 100000}}
        await agent.call("UpdateContainer", container_id="c1", resources={"CPU": {"Quota": -1}})
        applied = json.loads((agent.directory / "state/c1.limits").read_text())
        assert applied == {"cpu": {"quota": -1, "period": 100000}}, "crun lifts it only with a period"
        with pytest.raises(errors.InvalidArgument, match=r"resources\.cpu\.shares: .*out of range"):
            await agent.call("UpdateContainer", container_id="c1", resources={"CPU": {"Shares": 1}})
        await remove(agent)
        assert agent.leftovers() == []

    play(scenario)


def test_processes_are_listed_the_init_first_and_execs_by_name(play: Play, cgroups: Path) -> None:
    group = make_cgroup(cgroups)

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        await agent.call("ExecProcess", container_id="c1", exec_id="e", process={"Args": ["sleep", "100"]})
        container = agent.sandbox.container("c1")
        init, exec_ = container.init.pid, container.process("e").pid
        (group / "cgroup.procs").write_text(f"{exec_}\n{init}\n99999\n")
        found = await agent.call("ListProcesses", "kata_py.guest.Guest", container_id="c1")
        assert [(item["pid"], item["exec_id"]) for item in found["processes"]] == [
            (init, ""),
            (exec_, "e"),
            (99999, ""),
        ]
        await remove(agent)

    play(scenario)


def test_the_numbers_of_a_container_outlive_its_process(play: Play, cgroups: Path) -> None:
    group = make_cgroup(cgroups)
    (group / "cpu.stat").write_text("usage_usec 7\n")

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["true"])
        await agent.wait("c1")
        found = await agent.call("StatsContainer", container_id="c1")
        assert found["cgroup_stats"]["cpu_stats"]["cpu_usage"]["total_usage"] == 7000
        await remove(agent)

    play(scenario)


@pytest.mark.parametrize("victim", ["", "e"])
def test_the_oom_event_comes_before_the_exit_that_it_explains(play: Play, cgroups: Path, victim: str) -> None:
    group = make_cgroup(cgroups)

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        await agent.call("ExecProcess", container_id="c1", exec_id="e", process={"Args": ["sleep", "100"]})
        told: list[str] = []

        async def note(what: str, method: str, **request: str) -> None:
            await agent.call(method, **request)
            told.append(what)

        waiting = [
            asyncio.create_task(note("exit", "WaitProcess", container_id="c1", exec_id=victim)),
            asyncio.create_task(note("oom", "GetOOMEvent")),
        ]
        await asyncio.sleep(0)
        # Both before the agent looks: the counter, and the end of the process.
        with (group / "memory.events").open("r+b", buffering=0) as file:
            agent.sandbox.container("c1").process(victim).signal(9)
            file.write(b"oom_kill 1\n")
        await asyncio.gather(*waiting)
        assert told == ["oom", "exit"]
        await remove(agent)

    play(scenario)
