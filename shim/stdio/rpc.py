"""stdio copied by the agent's RPCs (WriteStdin, CloseStdin, ReadStdout, ReadStderr), where no stream can be passed.

The promises are those of passed streams: a slow reader stops its own stream and no other, with a buffer here and a
pipe in the guest filled; input ends with CloseIO, behind its last byte, and a client that goes away has detached; an
output ends when the agent says so, behind its last byte.
"""

from __future__ import annotations

import asyncio
import fcntl
import os

from shim.agent.api import Agent, ProcessIds
from shim.errors import ShimError
from shim.log import Log
from shim.stdio.api import STDERR, STDIN, STDOUT, Carrier
from shim.stdio.copy import InputCopy, OutputCopy
from shim.vsock.api import Stream


class RpcStdio(Carrier):
    """The streams of one process, which the agent knows by `ids`."""

    def __init__(self, agent: Agent, ids: ProcessIds, *, terminal: bool, log: Log) -> None:
        self._agent, self._ids, self._terminal = agent, ids, terminal
        self._log = log.bind(exec=ids.exec_id)
        self._stdin: InputCopy | None = None
        self._outputs: dict[str, OutputCopy] = {}
        self._begun = asyncio.Event()

    async def carry(self, name: str, fd: int) -> Stream:
        ours = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        if name != STDIN:
            return self._output(name, ours)
        self._stdin = InputCopy(
            lambda data: self._agent.write_stdin(self._ids, data), self._close_stdin, ours, self._log
        )
        return self._stdin

    def _output(self, name: str, fd: int) -> OutputCopy:
        read = self._agent.read_stdout if name == STDOUT else self._agent.read_stderr
        output = self._outputs[name] = OutputCopy(lambda size: read(self._ids, size), fd, self._log)
        return output

    def ports(self, streams: dict[str, Stream]) -> None:
        return None

    def begin(self) -> None:
        """Copy from now on. An output that nobody wants is read all the same, or the process would stop at a full
        pipe."""
        for name in (STDOUT,) if self._terminal else (STDOUT, STDERR):
            if name not in self._outputs:
                self._output(name, os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
            self._outputs[name].begin()
        if self._stdin is not None:
            self._stdin.begin()
        self._begun.set()

    async def _close_stdin(self) -> None:
        """Its process has got all its input. A terminal stays open, for its output."""
        if not self._terminal:
            try:
                await self._agent.close_stdin(self._ids)
            except ShimError as error:  # the process has ended already, most likely
                self._log.debug("stdin cannot be closed", error=error)

    def end(self) -> None:
        if self._stdin is not None:
            self._stdin.close()

    async def exit_may_be_asked(self) -> None:
        if self._agent.forgets_ended:
            await self._begun.wait()
            for output in list(self._outputs.values()):
                await output.settled.wait()

    def close(self) -> None:
        self.end()
        for output in self._outputs.values():
            output.close()
        self._begun.set()
