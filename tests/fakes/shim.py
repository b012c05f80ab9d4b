"""A live shim as `kata-py` sees one: its socket, with canned answers, served by a thread."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.pb.containerd.task import v2
from shim.pb.io.containerd.cgroups import v2 as cgroups
from shim.pb.kata_py import introspect as pb
from shim.ttrpc.server import Server


class _Introspect(pb.IntrospectBase):
    def __init__(self, response: pb.SandboxResponse) -> None:
        self.response = response

    async def sandbox(self, sandbox_request: pb.SandboxRequest) -> pb.SandboxResponse:
        return self.response


class _Task(v2.TaskBase):
    async def stats(self, stats_request: v2.StatsRequest) -> v2.StatsResponse:
        metrics = cgroups.Metrics(
            pids=cgroups.PidsStat(current=3),
            cpu=cgroups.CpuStat(usage_usec=1_500_000),
            memory=cgroups.MemoryStat(usage=4096),
        )
        return v2.StatsResponse(AnyMessage("io.containerd.cgroups.v2.Metrics", bytes(metrics)))


class FakeShim:
    """A context manager: answers on the socket at `path` while inside."""

    def __init__(self, path: Path, response: pb.SandboxResponse) -> None:
        self._path, self._services = path, [_Introspect(response), _Task()]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> FakeShim:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self._path))
        listener.listen()
        listener.setblocking(False)
        self._thread.start()
        self._server = self._run(self._serve(listener))
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._server.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._path.unlink()

    async def _serve(self, listener: socket.socket) -> Server:
        server = Server(self._services)
        await server.serve(listener)
        return server

    def _run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)
