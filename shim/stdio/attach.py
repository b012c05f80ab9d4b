"""Hand the stdio of one process to the vsock device, and know when its output has arrived.

When stdin counts as ended:

1. after CloseIO (`Streams.close_stdin`): the device reads the FIFO until it is empty, then half-closes;
2. when every writer is gone, as long as we hold no write end ourselves (`Streams.hold_stdin`).

For an init process the write end is taken at Start, not at Create. `ctr run` calls CloseIO only for an end of
input that it meets after Create has returned; with a short pipe as its stdin it has read, written and closed
everything before that. A client that has closed its end before Start has said all it will ever say, so rule 2
gives the process its end of input. From Start on a client that vanishes has detached, and the process keeps
waiting. (A client whose input is empty closes before our open and leaves no trace: that input stays open, as
it does under runc.)"""

from __future__ import annotations

import asyncio
import contextlib
import os

from shim.agent.api import StdioPorts
from shim.stdio.fifo import hold_input, open_input, open_output
from shim.stdio.uri import Endpoints
from shim.vsock.api import Stream, StreamStat, VsockDevice

# How often a drain that makes progress is looked at.
_PROGRESS_S = 0.25


class Streams:
    """The streams of one process and the FIFO ends we keep. `close` at Delete."""

    def __init__(
        self,
        stdin: Stream | None,
        outputs: tuple[Stream | None, Stream | None],
        stdin_path: str | None,
        stdin_keeper: int | None,
        keepers: contextlib.ExitStack,
    ) -> None:
        self._stdin, self._outputs, self._stdin_path, self._keepers = stdin, outputs, stdin_path, keepers
        self._stdin_keeper = stdin_keeper
        self._stdin_closed = False

    @property
    def ports(self) -> StdioPorts:
        ports = [stream.host_port if stream else 0 for stream in (self._stdin, *self._outputs)]
        return StdioPorts(*ports)

    def hold_stdin(self) -> None:
        """From now on a client that goes away is no end of input. Idempotent."""
        if self._stdin and self._stdin_path and self._stdin_keeper is None and not self._stdin_closed:
            self._stdin_keeper = hold_input(self._stdin_path)

    async def close_stdin(self) -> None:
        """The client has written all of its input: the process gets it, then its end. Idempotent.

        Without our write end a device that does not know `eof` finds the end as well, once the client has
        closed its own; so nothing needs to be said to the agent, which would cut off what is still on the
        way."""
        self.release_stdin()
        if self._stdin is not None:
            await self._stdin.eof()

    def release_stdin(self) -> None:
        """Give up our write end: the process has ended or its input has. Idempotent."""
        self._stdin_closed = True
        if self._stdin_keeper is not None:
            os.close(self._stdin_keeper)
            self._stdin_keeper = None

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
            while not (await asyncio.wait([waits], timeout=min(_PROGRESS_S, grace_s)))[0]:
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

    def close(self) -> None:
        """Close the FIFO ends and control connections. Idempotent; does not end the streams."""
        self.release_stdin()
        self._keepers.close()
        for stream in (self._stdin, *self._outputs):
            if stream is not None:
                stream.close()


async def attach(
    device: VsockDevice, port: int, endpoints: Endpoints, timeout_s: float, *, hold_stdin: bool
) -> Streams:
    """Open what `endpoints` names and hand it to the guest's `port`. On an error nothing of ours stays open.

    `hold_stdin` takes the write end before the device can see an end of input, see above.
    """
    passed: list[int] = []
    held: int | None = None
    streams: list[Stream] = []
    keepers = contextlib.ExitStack()

    async def hand_over(fd: int | None) -> Stream | None:
        if fd is None:
            return None
        stream = await device.pass_fd(fd, port, timeout_s)
        streams.append(stream)
        return stream

    def opened(fd: int) -> int:
        passed.append(fd)
        return fd

    def output(path: str | None) -> int | None:
        if path is None:
            return None
        keeper, fd = open_output(path)
        if keeper is not None:
            keepers.callback(os.close, keeper)
        return opened(fd)

    try:
        stdout_fd, stderr_fd = output(endpoints.stdout), output(endpoints.stderr)
        stdin_fd = opened(open_input(endpoints.stdin)) if endpoints.stdin else None
        if endpoints.stdin and hold_stdin:
            held = hold_input(endpoints.stdin)
        # At the same time: each is a round trip into the guest. All are waited for, so that none is forgotten.
        handed = await asyncio.gather(
            *(hand_over(fd) for fd in (stdin_fd, stdout_fd, stderr_fd)), return_exceptions=True
        )
        stdin, stdout, stderr = (_checked(result) for result in handed)
    except BaseException:
        keepers.close()
        if held is not None:
            os.close(held)
        for stream in streams:
            stream.close()
        raise
    finally:
        for fd in passed:
            os.close(fd)
    return Streams(stdin, (stdout, stderr), endpoints.stdin, held, keepers)


def _checked(result: Stream | BaseException | None) -> Stream | None:
    if isinstance(result, BaseException):
        raise result
    return result
