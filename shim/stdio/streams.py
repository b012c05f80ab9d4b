"""The streams of one process, and when its output has arrived."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from shim.agent.api import StdioPorts
from shim.stdio.api import STDERR, STDIN, STDOUT, Carrier
from shim.stdio.logger import LoggerProcess
from shim.stdio.output import OutputFifo
from shim.stdio.stdin import Input
from shim.vsock.api import Stream, StreamStat

# How often a drain that makes progress is looked at.
_PROGRESS_S = 0.25
_SHORTEST_S = 0.01
# How often a reader is looked at that has not taken all yet.
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.001, 0.05


class Streams:
    """What `carrier` carries for a process, by name, and the FIFO ends we keep. `close` at Delete, `abandon` for a
    process that was never started."""

    def __init__(
        self,
        carrier: Carrier,
        streams: dict[str, Stream],
        output_fifos: dict[str, OutputFifo],
        stdin_fifo: Input | None,
        *,
        loggers: Sequence[LoggerProcess],
        keepers: contextlib.ExitStack,
    ) -> None:
        self._carrier, self._streams, self._output_fifos = carrier, streams, output_fifos
        self._stdin_fifo, self._loggers, self._keepers = stdin_fifo, loggers, keepers
        self._stdin = streams.get(STDIN)
        self._outputs = {name: streams[name] for name in (STDOUT, STDERR) if name in streams}
        self._given_up = False

    @property
    def ports(self) -> StdioPorts | None:
        """What the agent is told when the process is made."""
        return self._carrier.ports(self._streams)

    def begin(self) -> None:
        """The process runs."""
        self._carrier.begin()

    def end(self) -> None:
        """The process has ended: there is no input any more. Idempotent, also before `begin`."""
        self.forget_client()
        self._carrier.end()

    def input_has_ended(self) -> bool:
        """Before the process starts: whether stdin's client has come and gone (see `stdin`)."""
        return self._stdin_fifo is not None and self._stdin_fifo.client_left()

    async def close_stdin(self) -> bool:
        """The client has written all of its input: the process gets it, then its end. False when the device cannot
        end a stream (a plain Dragonball one): then the agent must be told. Idempotent."""
        self.forget_client()
        return self._stdin is None or await self._stdin.eof()

    def forget_client(self) -> None:
        """The process has started, or it or its input has ended: who leaves now has detached. Idempotent."""
        if self._stdin_fifo is not None:
            self._stdin_fifo.close()

    async def exit_may_be_asked(self) -> None:
        """Until asking the agent for the exit of the process cannot cost output."""
        await self._carrier.exit_may_be_asked()

    async def drained(self, grace_s: float, limit_s: float) -> bool:
        """Until stdout and stderr are in their FIFOs to the last byte and their readers have taken it: True. False once
        nothing has moved into a FIFO for `grace_s` (somebody else holds the other end, or the reader is stuck) or after
        `limit_s`. A reader may leave the last bytes where they are for as long."""
        if not self._outputs:
            return True
        end = asyncio.get_running_loop().time() + limit_s
        if not await self._arrived(grace_s, end):
            return False
        await self._taken(grace_s, end)
        return True

    async def _taken(self, grace_s: float, end: float) -> None:
        """containerd's client closes its end of a FIFO as soon as it has heard of the exit, whatever is in there
        (containerd, pkg/cio/io_unix.go, copyIO's cancel)."""
        loop, fifos = asyncio.get_running_loop(), self._output_fifos.values()
        moved_at, seen, pause = loop.time(), -1, _SHORTEST_LOOK_S
        while left := sum(fifo.unread() for fifo in fifos if fifo.unread() and fifo.has_reader()):
            now = loop.time()
            if left != seen:
                moved_at, seen = now, left
            if now - moved_at >= grace_s or now >= end:
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_LOOK_S)

    async def _arrived(self, grace_s: float, end: float) -> bool:
        loop = asyncio.get_running_loop()
        moved_at, seen = loop.time(), -1
        waits = asyncio.gather(*(stream.drained() for stream in self._outputs.values()))
        try:
            while not (await asyncio.wait([waits], timeout=min(_PROGRESS_S, max(grace_s, _SHORTEST_S))))[0]:
                now = loop.time()
                stats = await asyncio.gather(*(stream.stat() for stream in self._outputs.values()))
                total = sum(stat.rx for stat in stats if isinstance(stat, StreamStat))
                if total != seen:
                    moved_at, seen = now, total
                if now - moved_at >= grace_s or now >= end:
                    return False
            return True
        finally:
            waits.cancel()

    async def end_idle(self, grace_s: float) -> None:
        """After an exit that was told with its output not drained: end each output that stands still for
        `grace_s` although its reader has taken all there was. Somebody whom the process has left behind holds it,
        and the reader must see an end. An output whose reader is behind is left to the reader; one that has no reader,
        to somebody who comes, as long as one can (see `give_up`)."""
        fifos = self._output_fifos
        await asyncio.gather(
            *(self._end_idle(stream, fifos.get(name), grace_s) for name, stream in self._outputs.items())
        )

    async def _end_idle(self, stream: Stream, fifo: OutputFifo | None, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        moved_at, seen = loop.time(), -1
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PROGRESS_S):
                    await stream.drained()
                    return
            stat = await stream.stat()
            if stat is None:
                return  # the device has gone, or the stream was closed
            if self._given_up and fifo is not None and fifo.out_of_reach():
                stream.abandon()
                return
            if stat.rx != seen or (fifo is not None and fifo.unread()):
                moved_at, seen = loop.time(), stat.rx
            elif loop.time() - moved_at >= grace_s:
                stream.abandon()
                return

    def give_up(self) -> None:
        """The process is deleted. Clients remove a FIFO after that; what nobody reads is kept until then."""
        self._given_up = True

    async def counters(self) -> dict[str, StreamStat]:
        """What has gone through each stream there is, by its name: stdin, stdout, stderr. A device that does not
        count leaves it out."""
        stats = {name: await stream.stat() for name, stream in self._streams.items()}
        return {name: stat for name, stat in stats.items() if stat is not None}

    async def until_opened(self) -> None:
        """The outputs have ended: until every FIFO has a reader, or `close`; see `output`."""
        await asyncio.gather(*(fifo.until_opened() for fifo in self._output_fifos.values()))

    def close(self) -> None:
        """Close the FIFO ends and control connections. Idempotent; does not end passed streams."""
        self._keepers.close()

    async def wait_closed(self) -> None:
        """After `close`: until loggers have done their work, or were made to end."""
        await asyncio.gather(*(logger.wait() for logger in self._loggers))

    def abandon(self) -> None:
        """Close everything and end the streams, which no process in the guest has taken or ever will: else the
        device would hold the FIFOs, and their reader would see no end, until the agent has given them up."""
        for stream in self._streams.values():
            stream.abandon()
        self.close()
