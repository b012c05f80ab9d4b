"""Tell containerd what happened, in order and exactly once as far as it answers.

One queue, one sender. The head of the queue is tried until containerd has it, so an exit that happens while
containerd restarts arrives afterwards and nothing overtakes it. Nobody ever waits for the sender.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from contextlib import suppress

from shim.errors import DeadlineExceeded, InvalidArgument, ShimError, Unavailable
from shim.log import Log
from shim.pb.containerd.services.events.ttrpc.v1 import ForwardRequest
from shim.pb.containerd.types import Envelope
from shim.sandbox import TaskEvent, TaskOutOfMemory
from shim.task.convert import event_message, timestamp
from shim.ttrpc.channel import Channel

_SERVICE = "containerd.services.events.ttrpc.v1.Events"
_NAMESPACE_KEY = "containerd-namespace-ttrpc"
_CALL_S = 5.0
_RETRY_S, _MAX_RETRY_S = 0.1, 2.0
# So many events wait at most before news of the OOM killer are left out: all others answer requests, which end when
# containerd does, but a guest makes these without end.
_MANY = 1000
# A containerd that is there and cannot take an event will not take it later either.
_MAX_REFUSALS = 5


class Publisher:
    """Sends to containerd's ttrpc socket at `address`. `publish` is a `sandbox.Emit`."""

    def __init__(self, address: str, namespace: str, log: Log) -> None:
        self._address, self._namespace, self._log = address, namespace, log
        self._queue: deque[tuple[str, bytes]] = deque()
        self._work = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._channel: Channel | None = None
        self._sender: asyncio.Task[None] | None = None

    def publish(self, event: TaskEvent) -> None:
        """Queue an event. Needs a running loop; never blocks."""
        if isinstance(event, TaskOutOfMemory) and len(self._queue) >= _MANY:
            return
        topic, message = event_message(event)
        envelope = Envelope(
            timestamp=timestamp(time.time_ns()), namespace=self._namespace, topic=topic, event=message
        )
        self._queue.append((topic, bytes(ForwardRequest(envelope=envelope))))
        self._empty.clear()
        self._work.set()
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="publisher")

    async def aclose(self, timeout_s: float = 5.0) -> None:
        """Send what is queued, for `timeout_s` at most, and close. What is left is lost, and logged."""
        if self._sender is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._empty.wait()
            self._sender.cancel()
            await asyncio.wait([self._sender])
        if self._queue:
            self._log.error("events not delivered", topics=",".join(topic for topic, _ in self._queue))
        await self._hang_up()

    async def _send_all(self) -> None:
        while True:
            while self._queue:
                await self._deliver(*self._queue[0])
                self._queue.popleft()
            self._empty.set()
            self._work.clear()
            await self._work.wait()

    async def _deliver(self, topic: str, payload: bytes) -> None:
        """Return once containerd has it, or will never have it."""
        pause, refusals = _RETRY_S, 0
        while True:
            try:
                await self._send(payload)
                return
            except (Unavailable, DeadlineExceeded) as error:
                self._log.debug("event delayed", topic=topic, error=error)
                await self._hang_up()
            except ShimError as error:
                refusals += 1
                if isinstance(error, InvalidArgument) or refusals == _MAX_REFUSALS:
                    self._log.error("containerd refuses an event", topic=topic, error=error)
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _MAX_RETRY_S)

    async def _send(self, payload: bytes) -> None:
        if self._channel is None:
            self._channel = await Channel.dial(self._address)
        metadata = {_NAMESPACE_KEY: self._namespace}
        await self._channel.call(_SERVICE, "Forward", payload, timeout_s=_CALL_S, metadata=metadata)

    async def _hang_up(self) -> None:
        if self._channel is not None:
            channel, self._channel = self._channel, None
            await channel.aclose()
