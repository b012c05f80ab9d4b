"""containerd's two ends of a shim: the client of its Task service, and the server that takes its events."""

from __future__ import annotations

import asyncio
from typing import Any

from betterproto.lib.google.protobuf import Empty

from shim.errors import ShimError
from shim.pb.containerd import events
from shim.pb.containerd.services.events.ttrpc.v1 import EventsBase, ForwardRequest

_TYPES = {
    f"containerd.events.{kind.__name__}": kind
    for kind in (
        events.TaskCreate,
        events.TaskStart,
        events.TaskExit,
        events.TaskDelete,
        events.TaskExecAdded,
        events.TaskExecStarted,
    )
} | {"containerd.events.TaskOOM": events.TaskOom}


class FakeContainerd(EventsBase):
    """Takes forwarded events into `received` as (topic, message). `answers` are errors to raise first."""

    def __init__(self) -> None:
        self.received: list[tuple[str, Any]] = []
        self.requests: list[ForwardRequest] = []
        self.answers: list[ShimError] = []
        self.arrived = asyncio.Event()

    async def forward(self, forward_request: ForwardRequest) -> Empty:
        self.requests.append(forward_request)
        if self.answers:
            raise self.answers.pop(0)
        envelope = forward_request.envelope
        message = _TYPES[envelope.event.type_url]().parse(envelope.event.value)
        self.received.append((envelope.topic, message))
        self.arrived.set()
        return Empty()

    @property
    def topics(self) -> list[str]:
        return [topic for topic, _ in self.received]

    async def wait_for(self, count: int) -> None:
        """Until `count` events are here."""
        async with asyncio.timeout(5):
            while len(self.received) < count:
                self.arrived.clear()
                await self.arrived.wait()
