"""containerd's sequences of calls against the whole shim on fakes: answers, events and their order, every misuse."""

from __future__ import annotations

import asyncio
import gc
import os
import time
import weakref
from collections.abc import Awaitable, Callable

import pytest
from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.agent.api import ProcessIds
from shim.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ShimError,
    Unavailable,
    Unimplemented,
    Unknown,
)
from shim.pb.containerd.task import v2
from shim.pb.containerd.v1.types import Status
from tests.sandbox.stack import Stack, until, with_stack


@with_stack
async def test_a_container_lives_from_create_to_shutdown(shim: Stack) -> None:
    assert (await shim.create()).pid == os.getpid()
    assert (await shim.state()).status == Status.CREATED
    assert (await shim.start()).pid == os.getpid()
    assert (await shim.state()).status == Status.RUNNING
    waiter = asyncio.create_task(shim.wait())
    shim.agent.exit("c1", code=7)
    assert await waiter == 7
    state = await shim.state()
    assert (state.status, state.exit_status) == (Status.STOPPED, 7)
    assert abs(state.exited_at.timestamp() - time.time()) < 5
    assert await shim.wait() == 7, "Wait answers until Delete"
    deleted = await shim.delete()
    assert (deleted.exit_status, deleted.exited_at) == (7, state.exited_at)
    await shim.shutdown()
    assert shim.shut_down
    assert shim.told() == ["TaskCreated:c1", "TaskStarted:c1", "TaskExited:c1", "TaskDeleted:c1"]
    assert shim.share.mounted == {}
    assert "stop" in shim.hypervisor.calls


@with_stack
async def test_a_process_that_ends_during_start_is_told_after_its_start(shim: Stack) -> None:
    await shim.create()
    shim.agent.hold["start_container"] = asyncio.Event()
    start = asyncio.create_task(shim.start())
    await until(lambda: "start_container" in shim.agent.calls)
    shim.agent.exit("c1", code=1)
    shim.agent.hold["start_container"].set()
    await start
    assert await shim.wait() == 1
    assert shim.told() == ["TaskCreated:c1", "TaskStarted:c1", "TaskExited:c1"]


@with_stack
async def test_state_answers_at_once_while_the_sandbox_boots(shim: Stack) -> None:
    shim.agent.hold["connect"] = asyncio.Event()
    create = asyncio.create_task(shim.create())
    await until(lambda: "connect" in shim.agent.calls)
    began = time.monotonic()
    state = await shim.state()
    assert time.monotonic() - began < 0.1
    assert (state.status, state.id) == (Status.CREATED, "c1")
    assert (await shim.task.pids(v2.PidsRequest(id="c1"))).processes
    shim.agent.hold["connect"].set()
    await create


@with_stack
async def test_an_exec_lives_inside_its_container(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")
    state = await shim.state(exec_id="e1")
    assert (state.status, state.pid, state.id) == (Status.CREATED, 0, "e1")
    waiter = asyncio.create_task(shim.wait(exec_id="e1"))  # CRI waits before it starts
    await shim.start(exec_id="e1")
    assert (await shim.state(exec_id="e1")).status == Status.RUNNING
    shim.agent.exit("c1", "e1", 3)
    assert await waiter == 3
    assert (await shim.delete(exec_id="e1")).exit_status == 3
    with pytest.raises(NotFound):
        await shim.state(exec_id="e1")
    await shim.exec("e1")  # the id is free again
    assert shim.told()[2:] == ["ExecAdded:e1", "ExecStarted:e1", "TaskExited:e1", "ExecAdded:e1"]


@with_stack
async def test_any_number_of_execs_may_be_started_at_once_and_wait_for_their_turn(shim: Stack) -> None:
    await shim.run()
    held = shim.agent.hold["exec_process"] = asyncio.Event()
    names = [f"e{number}" for number in range(100)]
    for name in names:
        await shim.exec(name)
    starting = [asyncio.create_task(shim.start(exec_id=name)) for name in names]
    await until(lambda: shim.agent.calls.count("exec_process") == 32)
    await asyncio.sleep(0.01)
    assert shim.agent.calls.count("exec_process") == 32
    assert (await shim.state()).status == Status.RUNNING
    held.set()
    await asyncio.gather(*starting)
    assert {process.exec_id for process in shim.agent.ports} == {"", *names}


@with_stack
async def test_execs_exit_before_their_container_does(shim: Stack) -> None:
    await shim.run()
    for exec_id in ("e1", "e2"):
        await shim.exec(exec_id)
        await shim.start(exec_id=exec_id)
    await shim.exec("never-started")
    shim.agent.exit("c1", code=0)
    shim.agent.exit("c1", "e1", 137)  # e2 outlives its init process and has to be killed
    assert await shim.wait() == 0
    assert shim.told()[-3:] == ["TaskExited:e1", "TaskExited:e2", "TaskExited:c1"]
    assert (ProcessIds("c1"), 9, True) in shim.agent.signals
    assert await shim.wait(exec_id="never-started") == 255


@with_stack
async def test_an_exec_that_has_ended_keeps_its_exit_code_when_its_container_ends(shim: Stack) -> None:
    """Also when it has output on its way to a slow reader, which the container does not wait for."""
    shim.device.automatic = False
    await shim.run()
    await shim.exec("e1", **shim.fifos("stdout"))
    await shim.start(exec_id="e1")
    shim.agent.exit("c1", "e1", 3)
    shim.agent.exit("c1")
    waiting = asyncio.create_task(shim.wait())
    while not waiting.done():
        shim.stream(0).moved += 1
        await asyncio.sleep(0.01)
    assert await shim.wait(exec_id="e1") == 3
    assert shim.told()[-2:] == ["TaskExited:e1", "TaskExited:c1"]


@with_stack
async def test_nothing_is_kept_of_an_exec_that_was_killed_and_deleted(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    process = weakref.ref(shim.sandbox.container("c1").execs["e1"])
    await shim.kill(exec_id="e1")
    await shim.wait(exec_id="e1")
    await shim.delete(exec_id="e1")
    await asyncio.sleep(0.01)
    gc.collect()
    assert process() is None


@with_stack
async def test_a_start_that_fails_leaves_no_exit_event_and_answers_waiters(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")
    waiter = asyncio.create_task(shim.wait(exec_id="e1"))
    shim.agent.fail["exec_process"] = NotFound('OCI runtime exec failed: exec: "x": not found')
    with pytest.raises(NotFound, match="OCI runtime exec failed"):
        await shim.start(exec_id="e1")
    assert await waiter == 255
    assert (await shim.state(exec_id="e1")).pid == 0
    await shim.delete(exec_id="e1")
    assert "TaskExited:e1" not in shim.told()


@with_stack
async def test_a_create_that_fails_leaves_nothing(shim: Stack) -> None:
    shim.agent.fail["create_container"] = NotFound('OCI runtime create failed: exec: "x": not found')
    fifos = shim.fifos("stdin", "stdout", "stderr")
    with pytest.raises(NotFound, match="OCI runtime create failed"):
        await shim.create(**fifos)
    assert shim.share.mounted == {}
    assert all(stream.closed for stream in shim.device.streams.values())
    with pytest.raises(NotFound, match="container not created"):
        await shim.delete()
    await shim.shutdown()
    assert shim.shut_down
    assert shim.told() == []


@with_stack
async def test_delete_gives_up_a_container_that_is_being_created(shim: Stack) -> None:
    shim.agent.hold["create_container"] = asyncio.Event()
    create = asyncio.create_task(shim.create())
    await until(lambda: "create_container" in shim.agent.calls)
    with pytest.raises(NotFound, match="container not created"):
        await shim.delete()
    with pytest.raises(NotFound):
        await create
    assert shim.share.mounted == {}
    await shim.shutdown()
    assert shim.shut_down


@with_stack
async def test_shutdown_during_boot_ends_the_vm(shim: Stack) -> None:
    shim.agent.hold["connect"] = asyncio.Event()
    create = asyncio.create_task(shim.create())
    await until(lambda: "connect" in shim.agent.calls)
    with pytest.raises(NotFound):
        await shim.delete()
    await shim.shutdown()
    with pytest.raises(NotFound):
        await create
    assert shim.shut_down
    assert "stop" in shim.hypervisor.calls
    assert shim.device_process.calls[-1] == "aclose"


@with_stack
async def test_shutdown_now_does_not_wait_for_the_last_container(shim: Stack) -> None:
    await shim.run()
    await shim.shutdown()
    assert not shim.shut_down
    await shim.task.shutdown(v2.ShutdownRequest(id="c1", now=True))
    assert shim.shut_down
    assert (await shim.wait()) == 137


@with_stack
async def test_a_container_that_was_created_can_be_killed_and_deleted(shim: Stack) -> None:
    await shim.create()
    await shim.kill(9, all=True)
    assert await shim.wait() == 137
    await shim.delete()
    await shim.create()
    assert (await shim.delete()).exit_status == 137


@with_stack
async def test_two_containers_share_one_vm(shim: Stack) -> None:
    await shim.run("c1")
    await shim.run("c2")
    assert shim.hypervisor.calls.count("start") == 1
    shim.agent.exit("c2")
    await shim.wait("c2")
    await shim.delete("c2")
    await shim.shutdown()
    assert not shim.shut_down, "c1 is still there"
    assert (await shim.state("c1")).status == Status.RUNNING
    assert shim.share.mounted.keys() == {"c1"}


@with_stack
async def test_kill_reaches_the_process_that_is_meant(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")
    await shim.start(exec_id="e1")
    await shim.kill(15)
    await shim.kill(10, exec_id="e1", all=True)
    await shim.kill(9, all=True)
    assert shim.agent.signals == [
        (ProcessIds("c1"), 15, False),
        (ProcessIds("c1", "e1"), 10, False),  # an exec is one process
        (ProcessIds("c1"), 9, True),
    ]


@with_stack
async def test_a_terminal_size_that_comes_early_is_kept(shim: Stack) -> None:
    async def resize(exec_id: str = "") -> None:
        await shim.task.resize_pty(v2.ResizePtyRequest(id="c1", exec_id=exec_id, width=100, height=40))

    await shim.create(terminal=True)
    await resize()
    assert ProcessIds("c1") not in shim.agent.sizes
    await shim.start()
    assert shim.agent.sizes[ProcessIds("c1")] == (40, 100)
    await shim.exec("e1", terminal=True)
    await resize("e1")
    await shim.start(exec_id="e1")
    assert shim.agent.sizes[ProcessIds("c1", "e1")] == (40, 100)
    await shim.exec("e2")
    await resize("e2")  # without a terminal: nothing, and no error


@with_stack
async def test_a_terminal_size_that_comes_during_the_start_is_not_lost(shim: Stack) -> None:
    await shim.create(terminal=True)
    shim.agent.hold["start_container"] = asyncio.Event()
    start = asyncio.create_task(shim.start())
    await until(lambda: "start_container" in shim.agent.calls)
    await shim.task.resize_pty(v2.ResizePtyRequest(id="c1", width=132, height=50))
    shim.agent.hold["start_container"].set()
    await start
    assert shim.agent.sizes[ProcessIds("c1")] == (50, 132)


@with_stack
async def test_connect_never_fails(shim: Stack) -> None:
    answer = await shim.task.connect(v2.ConnectRequest(id="nobody"))
    assert (answer.shim_pid, answer.task_pid) == (os.getpid(), 0)
    await shim.create()
    assert (await shim.task.connect(v2.ConnectRequest(id="c1"))).task_pid == os.getpid()


async def _nothing(shim: Stack) -> None:
    pass


async def _created(shim: Stack) -> None:
    await shim.create()


async def _running(shim: Stack) -> None:
    await shim.run()


async def _with_exec(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")


async def _with_running_exec(shim: Stack) -> None:
    await _with_exec(shim)
    await shim.start(exec_id="e1")


async def _stopped(shim: Stack) -> None:
    await shim.run()
    await shim.exec("e1")
    shim.agent.exit("c1")
    await shim.wait()


async def _exec_start(shim: Stack) -> None:
    await shim.exec("e1")
    await shim.start(exec_id="e1")


Step = Callable[[Stack], Awaitable[object]]
Misuse = tuple[str, Step, Step, type[ShimError], str]  # name, what happened before, the call, the answer
BAD_SPEC = AnyMessage(type_url="x", value=b"[]")

MISUSE: list[Misuse] = [
    ("state of nobody", _nothing, lambda s: s.state(), NotFound, "container not created"),
    ("start of nobody", _nothing, lambda s: s.start(), NotFound, "container not created"),
    ("kill of nobody", _nothing, lambda s: s.kill(), NotFound, "container not created"),
    ("delete of nobody", _nothing, lambda s: s.delete(), NotFound, "container not created"),
    ("wait for nobody", _nothing, lambda s: s.wait(), NotFound, "container not created"),
    ("pids of nobody", _nothing, lambda s: s.task.pids(v2.PidsRequest(id="c1")), NotFound, "container"),
    ("exec in nobody", _nothing, lambda s: s.exec("e1"), NotFound, "container not created"),
    ("create twice", _created, lambda s: s.create(), AlreadyExists, "already exists"),
    ("create without id", _nothing, lambda s: s.create("", bundle="/b"), InvalidArgument, "id"),
    ("create in a relative bundle", _nothing, lambda s: s.create(bundle="b"), InvalidArgument, "absolute"),
    ("create without bundle", _nothing, lambda s: s.create(bundle="/nowhere"), NotFound, "config.json"),
    (
        "create from a checkpoint",
        _nothing,
        lambda s: s.create(checkpoint="/c"),
        InvalidArgument,
        "checkpoint",
    ),
    (
        "create with an unknown scheme",
        _nothing,
        lambda s: s.create(stdout="http:///log"),
        InvalidArgument,
        "unknown scheme .http.",
    ),
    ("create with a missing fifo", _nothing, lambda s: s.create(stdout="/no/f"), NotFound, "/no/f"),
    ("start twice", _running, lambda s: s.start(), Unknown, "cannot start a running process"),
    ("start when stopped", _stopped, lambda s: s.start(), Unknown, "cannot start a stopped process"),
    ("delete when running", _running, lambda s: s.delete(), Unknown, "cannot delete a running process"),
    ("kill when stopped", _stopped, lambda s: s.kill(), NotFound, "process already finished"),
    ("kill all when stopped", _stopped, lambda s: s.kill(9, all=True), NotFound, "already finished"),
    ("kill with signal 65", _running, lambda s: s.kill(65), InvalidArgument, "signal 65"),
    ("exec when stopped", _stopped, lambda s: s.exec("e2"), Unknown, "cannot exec in a stopped state"),
    ("exec without an id", _running, lambda s: s.exec(""), InvalidArgument, "exec id is empty"),
    ("exec with a known id", _with_exec, lambda s: s.exec("e1"), AlreadyExists, "e1"),
    ("exec with the container's id", _running, lambda s: s.exec("c1"), AlreadyExists, "c1"),
    ("exec of no process", _running, lambda s: s.exec("e1", spec=BAD_SPEC), InvalidArgument, "process spec"),
    ("start of an exec when created", _created, _exec_start, FailedPrecondition, "not running"),
    (
        "start of an exec when stopped",
        _stopped,
        lambda s: s.start(exec_id="e1"),
        FailedPrecondition,
        "failed",
    ),
    ("start of no exec", _running, lambda s: s.start(exec_id="x"), NotFound, "process does not exist x"),
    ("start of a running exec", _with_running_exec, lambda s: s.start(exec_id="e1"), Unknown, "running"),
    ("kill of an exec not started", _with_exec, lambda s: s.kill(exec_id="e1"), FailedPrecondition, "failed"),
    ("delete of a running exec", _with_running_exec, lambda s: s.delete(exec_id="e1"), Unknown, "running"),
    ("delete of no exec", _running, lambda s: s.delete(exec_id="x"), NotFound, "x"),
    (
        "checkpoint",
        _running,
        lambda s: s.task.checkpoint(v2.CheckpointTaskRequest(id="c1")),
        Unimplemented,
        "checkpoint",
    ),
]


@pytest.mark.parametrize("row", MISUSE, ids=lambda row: row[0])
def test_misuse_is_answered_with_the_right_status(tmp_path: object, row: Misuse) -> None:
    _, given, act, error, words = row

    @with_stack
    async def run(shim: Stack) -> None:
        await given(shim)
        with pytest.raises(error, match=words):
            await act(shim)

    run(tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [_created, _running, _with_exec, _stopped])
def test_closing_stdin_is_legal_at_any_time_and_twice(tmp_path: object, given: Step) -> None:
    @with_stack
    async def run(shim: Stack) -> None:
        await given(shim)
        for _ in range(2):
            await shim.task.close_io(v2.CloseIoRequest(id="c1", stdin=True))
        if given in (_with_exec, _stopped):
            await shim.task.close_io(v2.CloseIoRequest(id="c1", exec_id="e1", stdin=True))

    run(tmp_path)  # type: ignore[arg-type]


# -- failures of the VM --------------------------------------------------------------------------------------

DEATHS: dict[str, Callable[[Stack], None]] = {
    "VM": lambda shim: shim.hypervisor.die(),
    "device": lambda shim: shim.device_process.die(),
    "share": lambda shim: shim.share.die(),
}


@pytest.mark.parametrize("part", DEATHS)
def test_the_death_of_a_part_ends_every_process_at_once(tmp_path: object, part: str) -> None:
    @with_stack
    async def run(shim: Stack) -> None:
        await shim.run("c1")
        await shim.exec("e1")
        await shim.start(exec_id="e1")
        await shim.create("c2")
        waiters = [asyncio.create_task(shim.wait(*ids)) for ids in (("c1", ""), ("c1", "e1"), ("c2", ""))]
        await asyncio.sleep(0)
        DEATHS[part](shim)
        assert await asyncio.gather(*waiters) == [137, 137, 137]
        told = shim.told()
        assert told.index("TaskExited:e1") < told.index("TaskExited:c1")
        assert sorted(event for event in told if event.startswith("TaskExited")) == [
            "TaskExited:c1",
            "TaskExited:c2",
            "TaskExited:e1",
        ]
        began = time.monotonic()
        with pytest.raises(Unavailable, match="the sandbox has died"):
            await shim.create("c3")
        with pytest.raises(NotFound):
            await shim.kill()
        assert (await shim.delete("c1")).exit_status == 137
        await shim.delete("c2")
        await shim.shutdown()
        assert time.monotonic() - began < 1
        assert "aclose" in shim.share.calls

    run(tmp_path)  # type: ignore[arg-type]


@with_stack
async def test_the_death_of_the_vm_during_boot_fails_create_with_its_last_words(shim: Stack) -> None:
    shim.agent.hold["connect"] = asyncio.Event()
    create = asyncio.create_task(shim.create())
    await until(lambda: "connect" in shim.agent.calls)
    shim.hypervisor.die(1, "console: Kernel panic - not syncing")
    with pytest.raises(Unavailable, match="Kernel panic"):
        await create


@pytest.mark.parametrize("step", ["connect", "check"])
def test_a_boot_step_that_fails_because_the_vm_died_says_why_it_died(tmp_path: object, step: str) -> None:
    @with_stack
    async def run(shim: Stack) -> None:
        shim.agent.hold[step] = asyncio.Event()
        create = asyncio.create_task(shim.create())
        await until(lambda: step in shim.agent.calls)
        shim.agent.lose()
        await asyncio.sleep(0.01)
        shim.hypervisor.die(1, "console: Kernel panic - not syncing")
        with pytest.raises(Unavailable, match="Kernel panic"):
            await create

    run(tmp_path)  # type: ignore[arg-type]


@with_stack
async def test_a_lost_agent_with_a_live_vm_is_an_unknown_exit(shim: Stack) -> None:
    await shim.run()
    shim.agent.lose()
    assert await shim.wait() == 255
    assert shim.told()[-1] == "TaskExited:c1"


@with_stack
async def test_a_start_that_the_vm_does_not_survive_fails(shim: Stack) -> None:
    await shim.create()
    shim.agent.hold["start_container"] = asyncio.Event()
    start = asyncio.create_task(shim.start())
    await until(lambda: "start_container" in shim.agent.calls)
    shim.hypervisor.die()
    with pytest.raises(Unavailable):
        await start
    assert await shim.wait() == 255
    assert "TaskExited:c1" not in shim.told()


@with_stack
async def test_a_request_whose_connection_breaks_is_finished(shim: Stack) -> None:
    shim.agent.hold["create_container"] = asyncio.Event()
    create = asyncio.create_task(shim.create())
    await until(lambda: "create_container" in shim.agent.calls)
    shim.channel.close()  # containerd dies
    with pytest.raises(Unavailable):
        await create
    shim.agent.hold["create_container"].set()
    await until(lambda: "TaskCreated:c1" in shim.told())
