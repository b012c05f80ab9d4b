"""Hand the stdio of one process to the vsock device, and know when its output has arrived."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable

from shim.agent.api import StdioPorts
from shim.stdio.fifo import open_output
from shim.stdio.output import OutputFifo
from shim.stdio.stdin import Input
from shim.stdio.uri import Endpoints
from shim.vsock.api import Stream, StreamStat, VsockDevice

NAMES = ("stdin", "stdout", "stderr")
# How often a drain that makes progress is looked at.
_PROGRESS_S = 0.25
_SHORTEST_S = 0.01


class Streams:
    """The streams of one process and the FIFO ends we keep. `close` at Delete."""

    def __init__(
        self,
        stdin: Stream | None,
        outputs: tuple[Stream | None, Stream | None],
        output_fifos: tuple[OutputFifo | None, OutputFifo | None],
        stdin_fifo: Input | None,
        keepers: contextlib.ExitStack,
    ) -> None:
        self._stdin, self._outputs, self._output_fifos = stdin, outputs, output_fifos
        self._stdin_fifo, self._keepers = stdin_fifo, keepers

    @property
    def ports(self) -> StdioPorts:
        ports = [stream.host_port if stream else 0 for stream in (self._stdin, *self._outputs)]
        return StdioPorts(*ports)

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

    async def drained(self, grace_s: float, limit_s: float) -> bool:
        """Until stdout and stderr are in their FIFOs to the last byte: True. False once nothing has moved for
        `grace_s` (somebody else holds the other end, or the reader is stuck) or after `limit_s`."""
        streams = [stream for stream in self._outputs if stream is not None]
        if not streams:
            return True
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        moved_at, seen = loop.time(), -1
        waits = asyncio.gather(*(stream.drained() for stream in streams))
        try:
            while not (await asyncio.wait([waits], timeout=min(_PROGRESS_S, max(grace_s, _SHORTEST_S))))[0]:
                now = loop.time()
                stats = await asyncio.gather(*(stream.stat() for stream in streams))
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
        and the reader must see an end. An output whose reader is behind is left to the reader."""
        pairs = zip(self._outputs, self._output_fifos, strict=True)
        await asyncio.gather(*(_end_idle(stream, fifo, grace_s) for stream, fifo in pairs if stream))

    async def counters(self) -> dict[str, StreamStat]:
        """What has gone through each stream there is, by its name: stdin, stdout, stderr. A device that does not
        count leaves it out."""
        named = dict(zip(NAMES, (self._stdin, *self._outputs), strict=True))
        stats = {name: await stream.stat() for name, stream in named.items() if stream is not None}
        return {name: stat for name, stat in stats.items() if stat is not None}

    async def until_opened(self) -> None:
        """The outputs have ended: until every FIFO has a reader, or `close`; see `output`."""
        await asyncio.gather(*(fifo.until_opened() for fifo in self._output_fifos if fifo))

    def close(self) -> None:
        """Close the FIFO ends and control connections. Idempotent; does not end the streams."""
        self._keepers.close()

    def abandon(self) -> None:
        """Close everything and end the streams, which no process in the guest has taken or ever will: else the
        device would hold the FIFOs, and their reader would see no end, until the agent has given them up."""
        _abandon(stream for stream in (self._stdin, *self._outputs) if stream)
        self.close()


async def attach(
    device: VsockDevice, port: int, endpoints: Endpoints, timeout_s: float, *, watch_stdin: bool
) -> Streams:
    """Open what `endpoints` names and hand it to the guest's `port`. On an error nothing of ours stays open.

    `watch_stdin` notices a stdin client that leaves before the process starts, see `stdin`.
    """
    streams: list[Stream] = []
    fifo: Input | None = None

    async def hand_over(fd: int | None) -> Stream | None:
        if fd is None:
            return None
        stream = await device.pass_fd(fd, port, timeout_s)
        streams.append(stream)
        return stream

    with contextlib.ExitStack() as passed, contextlib.ExitStack() as keepers:

        def output(path: str | None) -> tuple[OutputFifo | None, int | None]:
            if path is None:
                return None, None
            keeper, fd = open_output(path)
            passed.callback(os.close, fd)
            ours = OutputFifo(keeper) if keeper is not None else None
            if ours is not None:
                keepers.callback(ours.close)
            return ours, fd

        (stdout_fifo, stdout_fd), (stderr_fifo, stderr_fd) = map(output, (endpoints.stdout, endpoints.stderr))
        if endpoints.stdin is not None:
            fifo = Input(endpoints.stdin, watched=watch_stdin)
            passed.callback(os.close, fifo.fd)
            keepers.callback(fifo.close)
        keepers.callback(_close, streams)
        # At the same time: each is a round trip into the guest. All are waited for, so that none is forgotten.
        handed = await asyncio.gather(
            *(hand_over(fd) for fd in (fifo.fd if fifo else None, stdout_fd, stderr_fd)),
            return_exceptions=True,
        )
        try:
            stdin, stdout, stderr = (_checked(result) for result in handed)
        except BaseException:
            _abandon(streams)
            raise
        return Streams(stdin, (stdout, stderr), (stdout_fifo, stderr_fifo), fifo, keepers.pop_all())


async def _end_idle(stream: Stream, fifo: OutputFifo | None, grace_s: float) -> None:
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
        if stat.rx != seen or (fifo is not None and fifo.unread()):
            moved_at, seen = loop.time(), stat.rx
        elif loop.time() - moved_at >= grace_s:
            stream.abandon()
            return


def _abandon(streams: Iterable[Stream]) -> None:
    for stream in streams:
        stream.abandon()


def _close(streams: list[Stream]) -> None:
    for stream in streams:
        stream.close()


def _checked(result: Stream | BaseException | None) -> Stream | None:
    if isinstance(result, BaseException):
        raise result
    return result
