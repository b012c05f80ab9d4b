"""One process in the guest, as the host knows it: state, stdio, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from shim.agent.api import ProcessIds, StdioPorts
from shim.sandbox import states
from shim.sandbox.events import ExitStatus
from shim.sandbox.guest import Guest, Limits
from shim.sandbox.states import Event, State
from shim.stdio import uri
from shim.stdio.streams import Streams
from shim.stdio.uri import Stdio
from shim.vsock.api import StreamStat

# What Wait answers for a process that never ran.
_NEVER_RAN = 255


class Process:
    """The init process of a container (exec_id "") or an exec. Touched on the event loop only.

    `spec` is the OCI process of an exec; an init's is in its container's spec.
    """

    def __init__(
        self, ids: ProcessIds, stdio: Stdio, state: State, spec: Mapping[str, Any] | None = None
    ) -> None:
        self.ids, self.stdio, self.state, self.spec = ids, stdio, state, spec or {}
        self.exit: ExitStatus | None = None
        # How it has ended: known before its output has arrived and the exit is told.
        self.code: int | None = None
        self.to_be_killed = False  # by a SIGKILL that was asked for
        self.size: tuple[int, int] | None = None  # rows and columns asked for before there was a terminal
        self._endpoints = uri.parse(stdio)
        self._streams: Streams | None = None
        self._stdin_closed = False
        self._lingering = self._given_up = False
        self._ended = asyncio.Event()
        self._settled = asyncio.Event()  # unset while STARTING
        self._settled.set()

    @property
    def live(self) -> bool:
        """Whether a process may exist in the guest that has not been seen to end."""
        return self.state in (State.STARTING, State.RUNNING, State.PAUSED)

    def advance(self, event: Event) -> None:
        """Change the state, or raise as `states.advance`."""
        self.state = states.advance(self.state, event)
        if self.state is State.STARTING:
            self._settled.clear()
        else:
            self._settled.set()

    async def settled(self) -> None:
        """Until it is not STARTING."""
        await self._settled.wait()

    def finish(self, code: int) -> ExitStatus:
        """It has ended with `code`; waiters are answered. Only once, in CREATED, RUNNING or PAUSED."""
        self.advance(Event.EXIT)
        return self._end(code)

    def fail(self) -> None:
        """It never ran; waiters are answered, streams closed. Nothing happens if it ended or failed
        before."""
        if self.exit is None and self.state is not State.DELETED:
            self.advance(Event.FAIL)
            self._end(_NEVER_RAN)
            self.close_streams()

    def _end(self, code: int) -> ExitStatus:
        self.exit = ExitStatus(code, time.time_ns())
        self._ended.set()
        if self._streams is not None:
            self._streams.end()
        return self.exit

    async def wait(self) -> ExitStatus:
        """Until it has ended; any number of callers, also afterwards."""
        await self._ended.wait()
        assert self.exit is not None
        return self.exit

    async def attach(self, guest: Guest, limits: Limits, *, watch_stdin: bool) -> StdioPorts | None:
        """Open its stdio; what the agent is told of it."""
        self._streams = await guest.stdio.attach(
            self.ids,
            self._endpoints,
            limits.stream_s,
            terminal=self.stdio.terminal,
            watch_stdin=watch_stdin,
        )
        return self._streams.ports

    def begin_stdio(self) -> None:
        """It runs."""
        if self._streams is not None:
            self._streams.begin()

    async def exit_may_be_asked(self) -> None:
        """See `Streams.exit_may_be_asked`."""
        if self._streams is not None:
            await self._streams.exit_may_be_asked()

    async def settle_stdin(self) -> bool:
        """The process starts: an end of input from before that takes effect. False as `close_stdin`."""
        if self._streams is None:
            return True
        if self._stdin_closed or self._streams.input_has_ended():
            return await self.close_stdin()
        self._streams.forget_client()
        return True

    async def close_stdin(self) -> bool:
        """Legal at any time: before there are streams it is remembered, without stdin it is nothing. False when
        the agent must be told instead."""
        self._stdin_closed = True
        return self._streams is None or await self._streams.close_stdin()

    async def drain(self, limits: Limits) -> bool:
        if self._streams is None:
            return True
        return await self._streams.drained(limits.drain_grace_s, limits.drain_limit_s)

    async def counters(self) -> dict[str, StreamStat]:
        """Bytes and stalls of its stdin, stdout and stderr (those there are), so far or in the end."""
        return {} if self._streams is None else await self._streams.counters()

    async def see_off_output(self, limits: Limits, *, drained: bool) -> None:
        """The exit has been told. What has not drained is ended when it stands still (see `Streams.end_idle`), also
        when the process is deleted meanwhile, which clients do at once. Then the readers may come late."""
        if self._streams is None:
            return
        self._lingering = not drained
        try:
            if not drained:
                await self._streams.end_idle(limits.abandon_s)
        finally:
            self._lingering = False
            if self._given_up:
                self._streams.close()
        await self._streams.until_opened()

    def close_streams(self) -> None:
        """Give up the stdio; output that still flows after its process has ended is let flow. Idempotent."""
        self._given_up = True
        if self._streams is None:
            return
        if self._lingering:
            self._streams.give_up()
            return
        if self.state in (State.CREATING, State.FAILED):
            self._streams.abandon()
        else:
            self._streams.close()

    async def wait_streams_closed(self) -> None:
        """After `close_streams`: until its loggers have ended; those of output that is let flow are not waited for."""
        if self._streams is not None and not self._lingering:
            await self._streams.wait_closed()
