"""The vsock device as a process beside the shim: started with its sockets, ended behind the VM."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path

from shim.children import Child, spawn
from shim.errors import FailedPrecondition
from shim.log import Log
from shim.vsock.api import SOCKET_NAME
from shim.vsock.client import DeviceClient

_DEVICE_FLUSH_S, _DEVICE_STOP_S = 2.0, 1.0


class VsockProcess:
    """Implements `sandbox.parts.DeviceProcess`. The program writes its log to a copy of `log_fd`, its socket is
    in `run_dir`."""

    def __init__(self, program: Path, run_dir: Path, log: Log, log_fd: int) -> None:
        self._program, self._path = program, run_dir / SOCKET_NAME
        self._log, self._log_fd = log, log_fd
        self._vhost_user: socket.socket | None = None
        self._child: Child | None = None

    @property
    def client(self) -> DeviceClient:
        return DeviceClient(self._path)

    @property
    def vhost_user_fd(self) -> int:
        if self._vhost_user is None:
            raise FailedPrecondition("the vsock device was not started")
        return self._vhost_user.fileno()

    async def start(self) -> int:
        # We make and bind the sockets, so both are there before the program has started.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self._path))
            listener.listen(128)
            self._vhost_user, theirs = socket.socketpair()
            log_fd = os.dup(self._log_fd)
            try:
                argv = [str(self._program), "--vhost-user-fd", str(theirs.fileno())]
                argv += ["--listen-fd", str(listener.fileno()), "--socket-path", str(self._path)]
                argv += ["--log-fd", str(log_fd)]
                fds = (theirs.fileno(), listener.fileno(), log_fd)
                self._child = spawn(argv, pass_fds=fds, on_line=self._on_line)
            finally:
                theirs.close()
                os.close(log_fd)
        return self._child.pid

    def handed_over(self) -> None:
        if self._vhost_user is not None:
            self._vhost_user.close()

    async def wait(self) -> str:
        if self._child is None:
            raise FailedPrecondition("the vsock device was not started")
        await self._child.wait()
        return str(self._child.failure())

    async def aclose(self) -> None:
        self.handed_over()
        self._path.unlink(missing_ok=True)
        if self._child is None:
            return
        # The VM is gone, which the device sees: it writes out what it holds and ends by itself.
        with suppress(TimeoutError):
            async with asyncio.timeout(_DEVICE_FLUSH_S):
                await self._child.wait()
        await self._child.terminate(_DEVICE_STOP_S)

    def _on_line(self, line: str) -> None:
        self._log.warning("vsock device", line=line)
