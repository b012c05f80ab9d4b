"""Every call in every state, by a foreign client through a real socket; see `rpc_table`."""

from __future__ import annotations

import asyncio
import socket

from integration.ttrpc import Task
from shim.pb.containerd.task.v2 import TaskBase
from tests.sandbox.stack import Stack, with_stack
from tests.task.rpc_table import EXEC, INIT, Walk, columns


@with_stack
async def test_every_call_gives_in_every_state_what_the_table_says(shim: Stack) -> None:
    path = str(shim.directory / "sock")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.setblocking(False)
    await shim.server.serve(listener)
    await shim.run("c0")  # else the first Shutdown would be obeyed
    walk = Walk(lambda timeout_s: Task(path, timeout_s), "c1", str(shim.bundle("c1")), patience_s=0.05)
    wrong = await asyncio.to_thread(walk.all)
    assert not wrong, "\n".join(wrong)
    assert shim.told().count("TaskExited:c1") == 1
    assert [event for event in shim.told() if event.startswith(("TaskPaused", "TaskResumed"))] == [
        "TaskPaused:c1",
        "TaskResumed:c1",
    ]


def test_the_table_has_every_call_of_the_service() -> None:
    asked = set(columns(INIT, 1)["unknown",])
    assert asked - {"KillAll"} == {path.split("/")[2] for path in TaskBase().__mapping__()}
    assert set(columns(EXEC, 2)["none", "running"]) < asked
