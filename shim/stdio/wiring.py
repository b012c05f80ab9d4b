"""From what a request names as stdio to streams of a process in the guest."""

from __future__ import annotations

import asyncio
import contextlib
import os

from shim.agent.api import Agent, ProcessIds
from shim.log import Log
from shim.stdio.api import NAMES, STDERR, STDIN, STDOUT, Carrier
from shim.stdio.fifo import open_file, open_output
from shim.stdio.genuine import GenuineStdio, open_unwanted
from shim.stdio.logger import LoggerProcess, Loggers
from shim.stdio.output import OutputFifo
from shim.stdio.passed import PassedStdio
from shim.stdio.rpc import RpcStdio
from shim.stdio.stdin import Input
from shim.stdio.streams import Streams
from shim.stdio.uri import Endpoints, File, Logger
from shim.vsock.api import Stream, StreamRefused, VsockDevice


class Wiring:
    """How the stdio of one sandbox's processes travels: passed to the guest's `port`, or by RPCs with port 0.

    A guest that refuses the first stream ever has nobody there who takes any: from then on it is by RPCs.
    """

    def __init__(self, device: VsockDevice, agent: Agent, port: int, loggers: Loggers, log: Log) -> None:
        self._device, self._agent, self._port, self._loggers, self._log = device, agent, port, loggers, log
        self._proven = False

    async def attach(
        self, ids: ProcessIds, endpoints: Endpoints, timeout_s: float, *, terminal: bool, watch_stdin: bool
    ) -> Streams:
        """Open what `endpoints` names and make streams of it. On an error nothing of ours stays open.

        `timeout_s` is what a stream may need to get to the guest. `watch_stdin` notices a stdin client that leaves
        before the process starts, see `stdin`.
        """
        fds: dict[str, int] = {}
        fifos: dict[str, OutputFifo] = {}
        loggers: list[LoggerProcess] = []
        stdin: Input | None = None
        with contextlib.ExitStack() as passed, contextlib.ExitStack() as keepers:
            outputs = {STDOUT: endpoints.stdout, STDERR: endpoints.stderr}
            for program in dict.fromkeys(output for output in outputs.values() if isinstance(output, Logger)):
                logger = await self._loggers.start(program, ids.container_id)
                loggers.append(logger)
                keepers.callback(logger.end)
                for name, fd in ((STDOUT, logger.stdout), (STDERR, logger.stderr)):
                    passed.callback(os.close, fd)
                    if outputs[name] == program:
                        fds[name] = fd
            for name, output in outputs.items():
                if isinstance(output, File):
                    fds[name] = open_file(output.path)
                    passed.callback(os.close, fds[name])
                elif isinstance(output, str):
                    keeper, fds[name] = open_output(output)
                    passed.callback(os.close, fds[name])
                    if keeper is not None:
                        fifos[name] = OutputFifo(keeper)
                        keepers.callback(fifos[name].close)
            if endpoints.stdin is not None:
                stdin = Input(endpoints.stdin, watched=watch_stdin)
                fds[STDIN] = stdin.fd
                passed.callback(os.close, stdin.fd)
                keepers.callback(stdin.close)
            if self._port and self._agent.loses_streams:
                for name, null in open_unwanted(fds, terminal=terminal).items():
                    fds[name] = null
                    passed.callback(os.close, null)
            carrier, streams = await self._carry(ids, fds, timeout_s, terminal=terminal)
            keepers.callback(_close, streams, carrier)
            return Streams(carrier, streams, fifos, stdin, loggers=loggers, keepers=keepers.pop_all())

    async def _carry(
        self, ids: ProcessIds, fds: dict[str, int], timeout_s: float, *, terminal: bool
    ) -> tuple[Carrier, dict[str, Stream]]:
        if self._port:
            carrier = self._passed(ids, timeout_s, terminal=terminal)
            try:
                return carrier, await self._all(carrier, fds)
            except StreamRefused as error:
                if self._proven:
                    raise
                self._log.warning("streams cannot be passed to the guest: stdio goes by RPCs", error=error)
                self._port = 0
        by_rpc = RpcStdio(self._agent, ids, terminal=terminal, log=self._log)
        return by_rpc, await self._all(by_rpc, fds)

    def _passed(self, ids: ProcessIds, timeout_s: float, *, terminal: bool) -> Carrier:
        if not self._agent.loses_streams:
            return PassedStdio(self._device, self._port, timeout_s)
        return GenuineStdio(
            self._device, self._port, timeout_s, self._agent, ids, terminal=terminal, log=self._log
        )

    async def _all(self, carrier: Carrier, fds: dict[str, int]) -> dict[str, Stream]:
        streams: dict[str, Stream] = {}

        async def carry(name: str, fd: int) -> None:
            streams[name] = await carrier.carry(name, fd)
            self._proven = self._proven or bool(streams[name].host_port)

        names = [name for name in NAMES if name in fds]
        try:
            # At the same time: each is a round trip into the guest. All are waited for, so that none is forgotten.
            for result in await asyncio.gather(
                *(carry(name, fds[name]) for name in names), return_exceptions=True
            ):
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            for stream in streams.values():
                stream.abandon()
            _close(streams, carrier)
            raise
        return {name: streams[name] for name in names}


def _close(streams: dict[str, Stream], carrier: Carrier) -> None:
    for stream in streams.values():
        stream.close()
    carrier.close()
