"""An agent with the manners of the genuine kata-agent where they are not ours.

- It claims a stream by trying three times with a pause, then goes on without it.
- The end of a process is handled with the sandbox's lock held until its output is in the streams: meanwhile every other
  call waits.
- WaitProcess answers once; afterwards the process is not found.
- A passed stdin is lost from the first write on that a full pipe refuses; WriteStdin waits.
- An output without a stream is read by nobody.
- A process has a pipe as stdin whether somebody feeds it or not; only the stream's end or CloseStdin ends it, and
  CloseStdin takes a terminal away.
- SIGKILL without an exec id is for all of a container and never an error; SIGTERM to an init process kills it (137).
- An exec id "" is the init process.

Source: kata-containers src/agent (rpc.rs, signal.rs, passfd_io.rs, rustjail/src/{process,container}.rs), release 4.1.
A test is the program of a process: it has the other ends of its pipes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import signal
import socket
from typing import Any

from betterproto.lib.google.protobuf import Empty

from shim.errors import InvalidArgument, NotFound
from shim.pb import grpc
from tests.fakes.dragonball import read_some, write_all

CLAIM_TRIES, CLAIM_PAUSE_S = 3, 0.002  # the genuine one pauses for 0.1 s
DRAIN_S = 0.02  # of an output read by RPC whose process has ended; the genuine one waits for 0.5 s


class GuestProcess:
    """One process: `stdin`, `stdout`, `stderr` are the program's ends, one descriptor with a terminal."""

    def __init__(self, streams: list[socket.socket | None], *, terminal: bool, init: bool) -> None:
        self.init = init
        self.exit: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.signals: list[int] = []
        self.outputs: list[asyncio.Task[None]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._open: set[int] = set()
        self.size = (0, 0)
        if terminal:
            self.master, self.stdin = pty.openpty()
            self.stdout = self.stderr = self.stdin
            os.set_blocking(self.master, False)
            self.parent_stdin = -1
            self._open |= {self.master, self.stdin}
            sources = [self.master]
        else:
            self.master = -1
            self.stdin, self.parent_stdin = os.pipe()
            out, self.stdout = os.pipe()
            err, self.stderr = os.pipe()
            sources = [out, err]
            self._open |= {self.stdin, self.parent_stdin, self.stdout, self.stderr, out, err}
            for fd in (self.parent_stdin, *sources):
                os.set_blocking(fd, False)
        os.set_blocking(self.stdin, False)
        self.sources = sources
        if streams[0] is not None:
            self._tasks.append(asyncio.create_task(self._feed(streams[0])))
        for source, stream in zip(sources, streams[1:], strict=False):
            if stream is not None:
                self.outputs.append(asyncio.create_task(self._drain(source, stream)))

    async def _feed(self, stream: socket.socket) -> None:
        sink = self.master if self.master >= 0 else self.parent_stdin
        with stream, contextlib.suppress(BlockingIOError):
            while data := await asyncio.get_running_loop().sock_recv(stream, 8192):
                while data:
                    data = data[os.write(sink, data) :]
        if sink == self.parent_stdin:
            self.close(sink)

    async def _drain(self, source: int, stream: socket.socket) -> None:
        with stream:
            try:
                while data := await read_some(source):
                    await asyncio.get_running_loop().sock_sendall(stream, data)
            except OSError:
                return  # a terminal that nobody holds, or a host that has gone

    async def read(self) -> bytes:
        """The program reads its stdin: b"" at the end."""
        return await read_some(self.stdin)

    async def fetch(self, number: int, size: int) -> bytes:
        """ReadStdout (1) or ReadStderr (2): b"" at the end, or when nothing comes after the exit. With a terminal
        both read it."""
        source = self.sources[0] if self.master >= 0 else self.sources[number - 1]
        reading = asyncio.ensure_future(read_some(source, size))
        try:
            await asyncio.wait([reading, self.exit], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait([reading], timeout=DRAIN_S if self.exit.done() else None)
            return reading.result() if reading.done() else b""
        except OSError:
            return b""  # a terminal that nobody holds
        finally:
            reading.cancel()

    async def feed(self, data: bytes) -> None:
        """WriteStdin: no data is the end."""
        if data:
            await write_all(self.master if self.master >= 0 else self.parent_stdin, data)
        else:
            self.close_stdin()

    def write(self, data: bytes) -> None:
        os.write(self.stdout, data)

    def close(self, fd: int) -> None:
        if fd in self._open:
            self._open.discard(fd)
            os.close(fd)

    def close_stdin(self) -> None:
        """CloseStdin: at once, whatever is still on its way."""
        for task in self._tasks:
            task.cancel()
        self.close(self.master)
        self.close(self.parent_stdin)

    def hang_up(self) -> None:
        """The program's ends close with it."""
        for fd in (self.stdin, self.stdout, self.stderr):
            self.close(fd)

    async def aclose(self) -> None:
        tasks = [*self._tasks, *self.outputs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for fd in list(self._open):
            self.close(fd)


class GenuineAgent(grpc.AgentServiceBase):
    """`processes` by container and exec id, the init's under "". `arrive` takes the streams from the device."""

    def __init__(self) -> None:
        self.processes: dict[tuple[str, str], GuestProcess] = {}
        self.containers: set[str] = set()
        self.calls: list[str] = []
        self._streams: dict[int, socket.socket] = {}
        self._lock = asyncio.Lock()
        self._endings: list[asyncio.Task[None]] = []
        self._all: list[GuestProcess] = []

    async def arrive(self, host_port: int, stream: socket.socket) -> None:
        self._streams[host_port] = stream

    def end(self, container_id: str, exec_id: str = "", code: int = 0, *, child: bool = False) -> None:
        """A process exits; with `child`, one that it leaves behind keeps its streams."""
        process = self.processes[container_id, exec_id]
        if not child:
            process.hang_up()
        self._endings.append(asyncio.create_task(self._reap(process, code)))

    async def _reap(self, process: GuestProcess, code: int) -> None:
        async with self._lock:
            await asyncio.gather(*process.outputs, return_exceptions=True)
            if not process.exit.done():
                process.exit.set_result(code)

    async def _claim(self, *ports: int) -> list[socket.socket | None]:
        return [await self._take(port) if port else None for port in ports]

    async def _take(self, port: int) -> socket.socket | None:
        for _ in range(CLAIM_TRIES):
            if (stream := self._streams.pop(port, None)) is not None:
                return stream
            await asyncio.sleep(CLAIM_PAUSE_S)
        return None

    def _find(self, container_id: str, exec_id: str) -> GuestProcess:
        if container_id not in self.containers:
            raise InvalidArgument("InvalidContainerId")
        try:
            return self.processes[container_id, exec_id]
        except KeyError:
            raise NotFound("InvalidExecId" if exec_id else "InitProcessNotFound") from None

    async def create_sandbox(self, request: grpc.CreateSandboxRequest) -> Empty:
        assert [storage.driver for storage in request.storages] == ["virtio-fs", "ephemeral"]
        return Empty()

    async def set_guest_date_time(self, _request: Any) -> Empty:
        return Empty()

    async def reseed_random_dev(self, _request: Any) -> Empty:
        return Empty()

    async def create_container(self, request: grpc.CreateContainerRequest) -> Empty:
        self.calls.append("CreateContainer")
        streams = await self._claim(request.stdin_port, request.stdout_port, request.stderr_port)
        async with self._lock:
            self.containers.add(request.container_id)
            self._add(request.container_id, request.exec_id, streams, request.oci.process.terminal, init=True)
        return Empty()

    def _add(
        self,
        container_id: str,
        exec_id: str,
        streams: list[socket.socket | None],
        terminal: bool,
        *,
        init: bool,
    ) -> None:
        process = GuestProcess(streams, terminal=terminal, init=init)
        self.processes[container_id, exec_id] = process
        self._all.append(process)

    async def start_container(self, request: grpc.StartContainerRequest) -> Empty:
        self.calls.append("StartContainer")
        async with self._lock:
            self._find(request.container_id, "")
        return Empty()

    async def exec_process(self, request: grpc.ExecProcessRequest) -> Empty:
        self.calls.append("ExecProcess")
        streams = await self._claim(request.stdin_port, request.stdout_port, request.stderr_port)
        async with self._lock:
            self._find(request.container_id, "")
            self._add(request.container_id, request.exec_id, streams, request.process.terminal, init=False)
        return Empty()

    async def wait_process(self, request: grpc.WaitProcessRequest) -> grpc.WaitProcessResponse:
        self.calls.append("WaitProcess")
        async with self._lock:
            process = self._find(request.container_id, request.exec_id)
        code = await asyncio.shield(process.exit)
        async with self._lock:
            self.processes.pop((request.container_id, request.exec_id), None)
        return grpc.WaitProcessResponse(status=code)

    async def signal_process(self, request: grpc.SignalProcessRequest) -> Empty:
        self.calls.append("SignalProcess")
        async with self._lock:
            if request.exec_id == "" and request.signal == signal.SIGKILL:
                victims = [key for key in self.processes if key[0] == request.container_id]
            else:
                self._find(request.container_id, request.exec_id)
                victims = [(request.container_id, request.exec_id)]
        for key in victims:
            number = request.signal
            if self.processes[key].init and number == signal.SIGTERM:
                number = signal.SIGKILL
            self.end(*key, code=128 + number)
        return Empty()

    async def tty_win_resize(self, request: grpc.TtyWinResizeRequest) -> Empty:
        async with self._lock:
            self._find(request.container_id, request.exec_id).size = (request.row, request.column)
        return Empty()

    async def close_stdin(self, request: grpc.CloseStdinRequest) -> Empty:
        self.calls.append("CloseStdin")
        async with self._lock:
            self._find(request.container_id, request.exec_id).close_stdin()
        return Empty()

    async def read_stdout(self, request: grpc.ReadStreamRequest) -> grpc.ReadStreamResponse:
        return await self._read(request, 1)

    async def read_stderr(self, request: grpc.ReadStreamRequest) -> grpc.ReadStreamResponse:
        return await self._read(request, 2)

    async def _read(self, request: grpc.ReadStreamRequest, number: int) -> grpc.ReadStreamResponse:
        async with self._lock:
            process = self._find(request.container_id, request.exec_id)
        return grpc.ReadStreamResponse(data=await process.fetch(number, request.len))

    async def write_stdin(self, request: grpc.WriteStreamRequest) -> grpc.WriteStreamResponse:
        async with self._lock:
            process = self._find(request.container_id, request.exec_id)
        await process.feed(request.data)
        return grpc.WriteStreamResponse(len=len(request.data))

    async def remove_container(self, request: grpc.RemoveContainerRequest) -> Empty:
        self.calls.append("RemoveContainer")
        async with self._lock:
            if request.container_id not in self.containers:
                raise InvalidArgument("InvalidContainerId")
            self.containers.discard(request.container_id)
        return Empty()

    async def aclose(self) -> None:
        for task in self._endings:
            task.cancel()
        await asyncio.gather(*self._endings, return_exceptions=True)
        for process in self._all:
            await process.aclose()
        for stream in self._streams.values():
            stream.close()


class GenuineHealth(grpc.HealthBase):
    async def check(self, _request: grpc.CheckRequest) -> grpc.HealthCheckResponse:
        return grpc.HealthCheckResponse(status=grpc.HealthCheckResponseServingStatus.SERVING)

    async def version(self, _request: grpc.CheckRequest) -> grpc.VersionCheckResponse:
        return grpc.VersionCheckResponse(grpc_version="0.0.1", agent_version="4.1.0")
