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
        if name != STDIN:
            return self._output(name, fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))
        self._stdin = copy_input(self._agent, self._ids, fd, self._log, terminal=self._terminal)
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


def copy_input(agent: Agent, ids: ProcessIds, fd: int, log: Log, *, terminal: bool) -> InputCopy:
    """stdin by WriteStdin, from a duplicate of `fd`, closed at its end. A terminal stays open, for its output."""

    async def close() -> None:
        if not terminal:
            try:
                await agent.close_stdin(ids)
            except ShimError as error:  # the process has ended already, most likely
                log.debug("stdin cannot be closed", error=error)

    ours = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
    return InputCopy(lambda data: agent.write_stdin(ids, data), close, ours, log)
