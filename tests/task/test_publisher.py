"""Events on their way to a containerd that is slow, refuses, or comes and goes."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shim.errors import Internal, InvalidArgument, ShimError
from shim.log import Log
from shim.rootfs.api import Mount
from shim.sandbox import (
    ExecAdded,
    ExecStarted,
    ExitStatus,
    Stdio,
    TaskCreated,
    TaskDeleted,
    TaskEvent,
    TaskExited,
    TaskOutOfMemory,
    TaskStarted,
)
from shim.task import publisher as publisher_module
from shim.task.publisher import Publisher
from shim.ttrpc.server import Server, current_call
from tests.fakes.containerd import FakeContainerd

STATUS = ExitStatus(3, 1_700_000_000_123_456_789)
EVENTS: list[TaskEvent] = [
    TaskCreated("c", "/b", (Mount("overlay", "overlay", ("lowerdir=/l",)),), Stdio(True, "/i", "/o"), 9),
    TaskStarted("c", 9),
    ExecAdded("c", "e"),
    ExecStarted("c", "e", 9),
    TaskExited("c", "e", 9, STATUS),
    TaskExited("c", "c", 9, STATUS),
    TaskDeleted("c", 9, STATUS),
]
TOPICS = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"]


class Daemon:
    """A containerd whose socket is there or not."""

    def __init__(self, path: Path) -> None:
        self.path, self.containerd = path, FakeContainerd()
        self._server: Server | None = None

    async def up(self) -> None:
        self._server = Server([self.containerd])
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(self.path))
        sock.listen()
        sock.setblocking(False)
        await self._server.serve(sock)

    async def down(self) -> None:
        if self._server is not None:
            await self._server.aclose()
            self._server = None
        self.path.unlink(missing_ok=True)


Body = Callable[[Daemon, Publisher], Awaitable[None]]


def with_daemon(body: Body) -> Callable[[Path], None]:
    def run(tmp_path: Path) -> None:
        async def main() -> None:
            daemon = Daemon(tmp_path / "c.sock")
            publisher = Publisher(str(daemon.path), "ns", Log(os.open(os.devnull, os.O_WRONLY)))
            async with asyncio.timeout(20):
                await body(daemon, publisher)
                await publisher.aclose(1)
            await daemon.down()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}

        asyncio.run(main())

    run.__name__, run.__doc__ = body.__name__, body.__doc__
    return run


@with_daemon
async def test_events_arrive_in_order_with_all_they_carry(daemon: Daemon, publisher: Publisher) -> None:
    await daemon.up()
    for event in EVENTS:
        publisher.publish(event)
    await daemon.containerd.wait_for(len(EVENTS))
    assert daemon.containerd.topics == [f"/tasks/{topic}" for topic in TOPICS]
    create, start, _, started, exec_exit, exit_, delete = [m for _, m in daemon.containerd.received]
    assert (create.container_id, create.bundle, create.pid) == ("c", "/b", 9)
    assert (create.rootfs[0].type, create.rootfs[0].options) == ("overlay", ["lowerdir=/l"])
    assert (create.io.terminal, create.io.stdin, create.io.stdout) == (True, "/i", "/o")
    assert start.pid == 9
    assert started.exec_id == "e"
    assert (exec_exit.id, exit_.id, exit_.exit_status) == ("e", "c", 3)
    assert exit_.exited_at.timestamp() == 1_700_000_000.123456
    assert delete.exit_status == 3
    envelope = daemon.containerd.requests[0].envelope
    assert envelope.namespace == "ns"
    assert abs(envelope.timestamp.timestamp() - time.time()) < 10


@with_daemon
async def test_events_wait_for_a_containerd_that_restarts(daemon: Daemon, publisher: Publisher) -> None:
    publisher.publish(EVENTS[0])
    await asyncio.sleep(0.05)
    await daemon.up()
    await daemon.containerd.wait_for(1)
    await daemon.down()
    publisher.publish(EVENTS[1])
    publisher.publish(EVENTS[6])
    await asyncio.sleep(0.05)
    await daemon.up()
    await daemon.containerd.wait_for(3)
    assert daemon.containerd.topics == ["/tasks/create", "/tasks/start", "/tasks/delete"]


def test_news_of_the_oom_killer_do_not_pile_up_while_containerd_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest makes them for days. All other events are the answers to requests, which there are none of then."""
    monkeypatch.setattr(publisher_module, "_MANY", 3)

    @with_daemon
    async def body(daemon: Daemon, publisher: Publisher) -> None:
        publisher.publish(EVENTS[0])
        for _ in range(5000):
            publisher.publish(TaskOutOfMemory("c"))
        publisher.publish(EVENTS[6])
        await daemon.up()
        await daemon.containerd.wait_for(4)
        assert daemon.containerd.topics == ["/tasks/create", "/tasks/oom", "/tasks/oom", "/tasks/delete"]

    body(tmp_path)


def test_an_event_that_containerd_refuses_does_not_hold_up_the_others(tmp_path: Path) -> None:
    for answers in ([InvalidArgument("no")], [Internal("no")] * 5):

        @with_daemon
        async def body(daemon: Daemon, publisher: Publisher, answers: list[ShimError] = answers) -> None:
            daemon.containerd.answers = list(answers)
            await daemon.up()
            publisher.publish(EVENTS[0])
            publisher.publish(EVENTS[1])
            await daemon.containerd.wait_for(1)
            assert daemon.containerd.topics == ["/tasks/start"]

        body(tmp_path)


@with_daemon
async def test_an_event_is_tried_again_after_an_error(daemon: Daemon, publisher: Publisher) -> None:
    daemon.containerd.answers = [Internal("busy")]
    await daemon.up()
    publisher.publish(EVENTS[0])
    publisher.publish(EVENTS[1])
    await daemon.containerd.wait_for(2)
    assert daemon.containerd.topics == ["/tasks/create", "/tasks/start"]


@with_daemon
async def test_closing_sends_what_is_queued_but_not_for_ever(daemon: Daemon, publisher: Publisher) -> None:
    publisher.publish(EVENTS[0])
    began = time.monotonic()
    await publisher.aclose(0.1)
    assert 0.1 <= time.monotonic() - began < 2


def test_the_namespace_travels_as_metadata(tmp_path: Path) -> None:
    seen = []

    @with_daemon
    async def body(daemon: Daemon, publisher: Publisher) -> None:
        forward = daemon.containerd.forward

        async def spy(request):  # type: ignore[no-untyped-def]
            seen.append(dict(current_call.get().metadata))
            return await forward(request)

        daemon.containerd.forward = spy  # type: ignore[method-assign]
        await daemon.up()
        publisher.publish(EVENTS[1])
        await daemon.containerd.wait_for(1)

    body(tmp_path)
    assert seen == [{"containerd-namespace-ttrpc": "ns"}]
