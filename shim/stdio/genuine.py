"""Passed streams with the care that the genuine kata-agent needs (rustjail `container.rs`, release 4.1; both seen).

It copies a passed stdin into a pipe that does not block as if it did, and gives up at the first full one: more than
64 KiB to a process that reads slowly are cut off. So stdin goes by WriteStdin, which waits as it should. A terminal's
is not affected.

An output without a stream is read by nobody there: its process would stop at a full pipe, and a terminal hang up. So
one that nobody wants is passed to /dev/null.
"""

from __future__ import annotations

import os

from shim.agent.api import Agent, ProcessIds
from shim.log import Log
from shim.stdio.api import STDERR, STDIN, STDOUT
from shim.stdio.copy import InputCopy
from shim.stdio.passed import PassedStdio
from shim.stdio.rpc import copy_input
from shim.vsock.api import Stream, VsockDevice


class GenuineStdio(PassedStdio):
    """The streams of one process, which the agent knows by `ids`."""

    def __init__(
        self,
        device: VsockDevice,
        port: int,
        timeout_s: float,
        agent: Agent,
        ids: ProcessIds,
        *,
        terminal: bool,
        log: Log,
    ) -> None:
        super().__init__(device, port, timeout_s)
        self._agent, self._ids, self._terminal, self._log = agent, ids, terminal, log
        self._stdin: InputCopy | None = None

    async def carry(self, name: str, fd: int) -> Stream:
        if name != STDIN or self._terminal:
            return await super().carry(name, fd)
        self._stdin = copy_input(self._agent, self._ids, fd, self._log, terminal=False)
        return self._stdin

    def begin(self) -> None:
        if self._stdin is not None:
            self._stdin.begin()

    def end(self) -> None:
        if self._stdin is not None:
            self._stdin.close()

    def close(self) -> None:
        self.end()


def open_unwanted(fds: dict[str, int], *, terminal: bool) -> dict[str, int]:
    """/dev/null, opened for each output that is not among `fds`."""
    wanted = (STDOUT,) if terminal else (STDOUT, STDERR)
    return {name: os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC) for name in wanted if name not in fds}
