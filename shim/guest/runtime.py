"""Drives crun, the OCI runtime in the guest.

crun protects itself from its containers by copying itself into a sealed memfd and executing that copy, which
is half of the time of a run. It does not when it finds itself sealed already, so the copy is made once here.

crun's own messages go to a log file (`--log`), since fds 0-2 become the container's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping

from shim import errors
from shim.guest import ordinary
from shim.guest.reaper import Reaper
from shim.guest.spec import program_error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_MAX_LOG = 64 * 1024
# The limit of the runtime spec that crun has written to a file of cgroup v2, which is what its message names.
_LIMITS = {
    "cpu.weight": "cpu.shares",
    "cpu.max": "cpu.quota or period",
    "memory.max": "memory.limit",
    "memory.low": "memory.reservation",
    "memory.swap.max": "memory.swap",
    "pids.max": "pids.limit",
}


def sealed_copy(path: str) -> str:
    """A path that executes a sealed in-memory copy of the program, as long as this process lives."""
    fd = os.memfd_create("crun", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while os.sendfile(fd, source, None, 1 << 30):
            pass
    finally:
        os.close(source)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return f"/proc/self/fd/{fd}"


class Launched:
    """A process that crun has made: its pid, its wait status to come (await it through `asyncio.shield`), and
    the master of its terminal (owned by the caller) or -1."""

    def __init__(self, pid: int, exited: asyncio.Future[int], master: int) -> None:
        self.pid, self.exited, self.master = pid, exited, master


class Runtime:
    """crun's commands as coroutines. Raises `errors.ShimError` with crun's message.

    `program` is the path that is executed, `scratch` a directory for short-lived files. A call
    that is cancelled leaves its crun running to its end: the caller decides what to undo.
    """

    def __init__(self, reaper: Reaper, program: str, scratch: str) -> None:
        self._reaper, self.program, self._scratch = reaper, program, scratch
        self._states = f"{scratch}/crun"
        self._calls = 0
        os.makedirs(scratch, mode=0o700, exist_ok=True)

    async def create(
        self, container_id: str, bundle: str, args: list[str], stdio: tuple[int, int, int], *, terminal: bool
    ) -> Launched:
        """`crun create` of a bundle's config.json, up to the init process that waits for `start`.

        `args` is what the init process will execute, for the message only.
        """
        command = ["create", "--bundle", bundle]
        return await self._launch(command, [container_id], args, stdio, terminal=terminal)

    async def exec(
        self, container_id: str, process: Mapping[str, Any], stdio: tuple[int, int, int]
    ) -> Launched:
        """`crun exec` of a runtime spec process."""
        path = self._path("process")
        write_json(path, process)
        try:
            command = ["exec", "--detach", "--process", path]
            return await self._launch(
                command, [container_id], process["args"], stdio, terminal=bool(process.get("terminal"))
            )
        finally:
            os.unlink(path)

    async def version(self) -> None:
        """Run crun to no effect: the first run in a guest takes longer than the others."""
        await self._run(["--version"], [])

    async def start(self, container_id: str, *, hooks: bool = False) -> None:
        """`hooks`: there are some for crun to run."""
        if hooks or not ordinary.start(f"{self._states}/{container_id}"):
            await self._run(["start"], [container_id])

    async def update(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """`crun update`: change the limits of its cgroup to the runtime spec's resources."""
        path = self._path("resources")
        write_json(path, resources)
        try:
            await self._run(["update", "--resources", path], [container_id])
        finally:
            os.unlink(path)

    async def delete(self, container_id: str, ended_in: str = "") -> None:
        """Kill what is left, remove crun's state and the cgroup. No error when there is no such container.
        `ended_in` is the cgroup's directory if the init process has ended and there are no hooks for crun to run."""
        if not ended_in or not ordinary.delete(f"{self._states}/{container_id}", ended_in):
            await self._run(["delete", "--force"], [container_id])

    async def _launch(
        self,
        command: list[str],
        operands: list[str],
        args: list[str],
        stdio: tuple[int, int, int],
        *,
        terminal: bool,
    ) -> Launched:
        pid_file = self._path("pid")
        with self._reaper.adopting(), contextlib.ExitStack() as stack:
            stack.callback(_unlink, pid_file)
            command += ["--pid-file", pid_file]
            console = stack.enter_context(self._console()) if terminal else None
            if console is not None:
                command += ["--console-socket", console.getsockname()]
            await self._run(command, operands, stdio, args)
            pid = _read_pid(pid_file)
            # Before anything that may fail: this is the last moment to ask for a process that has ended.
            exited = self._reaper.watch(pid)
            try:
                return Launched(pid, exited, -1 if console is None else _receive_master(console))
            except BaseException:
                os.kill(pid, signal.SIGKILL)  # reaped by the reaper only, so the pid is still its own
                raise

    @contextlib.contextmanager
    def _console(self) -> Iterator[socket.socket]:
        path = self._path("console")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(path)
            try:
                listener.listen(1)
                listener.setblocking(False)
                yield listener
            finally:
                os.unlink(path)

    async def _run(
        self,
        command: list[str],
        operands: list[str],
        stdio: tuple[int, int, int] | None = None,
        args: list[str] | None = None,
    ) -> None:
        log = self._path("log")
        argv = [
            "crun",
            "--root",
            self._states,
            "--log",
            log,
            "--log-format=json",
            "--cgroup-manager=cgroupfs",
        ]
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        try:
            _, exited = self._reaper.spawn(
                self.program, argv + command + operands, stdio or (null, null, null), env
            )
        finally:
            os.close(null)
        try:
            status = os.waitstatus_to_exitcode(await exited)
            if status != 0:
                raise _failure(command[0], status, _last_error(log), args)
        finally:
            _unlink(log)

    def _path(self, kind: str) -> str:
        """A new short path: sockets have 107 bytes, and ids may be longer than that."""
        self._calls += 1
        return f"{self._scratch}/{kind}-{self._calls}"


def _read_pid(path: str) -> int:
    with open(path) as file:
        return int(file.read())


def _receive_master(console: socket.socket) -> int:
    """crun connects, sends the pty's master and only then ends, so all of it is waiting here."""
    try:
        connection, _ = console.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 4)
    except BlockingIOError as error:
        raise errors.Internal("crun has sent no terminal") from error
    if len(fds) != 1:
        for fd in fds:
            os.close(fd)
        raise errors.Internal(f"crun has sent {len(fds)} descriptors for a terminal")
    os.set_inheritable(fds[0], False)
    return fds[0]


def _last_error(log: str) -> str:
    try:
        with open(log, errors="replace") as file:
            lines = file.read(_MAX_LOG).splitlines()
    except FileNotFoundError:
        return ""
    for line in reversed(lines):
        try:
            return str(json.loads(line)["msg"])
        except (ValueError, KeyError, TypeError):
            continue
    return lines[-1] if lines else ""


# crun's words for a file without permission to execute it, and for a directory. Docker knows runc's.
_NOT_EXECUTABLE = tuple(f"open executable: {why}" for why in ("Permission denied", "Operation not permitted"))


def _failure(command: str, status: int, message: str, args: list[str] | None) -> errors.ShimError:
    """crun's message in the frame that runc's and containerd's users know."""
    ended = f"exit status {status}" if status >= 0 else f"signal {-status}"
    frame = f"OCI runtime {command} failed"
    if args is not None and message.startswith("executable file"):
        named = args and "/" in args[0]
        reason = (
            f"stat {args[0]}: no such file or directory" if named else "executable file not found in $PATH"
        )
        return errors.NotFound(f"{frame}: {program_error(args, reason)}")
    if args is not None and message.startswith(("open executable", "exec container process")):
        reason = "permission denied" if message in _NOT_EXECUTABLE else message
        return errors.InvalidArgument(f"{frame}: {program_error(args, reason)}")
    if command == "update" and message:
        limit = next((f"resources.{name}: " for file, name in _LIMITS.items() if f"`{file}`" in message), "")
        return errors.InvalidArgument(f"{limit}{frame}: {message}")
    kind = errors.InvalidArgument if "No such file or directory" in message else errors.Internal
    return kind(f"{frame}: {message or f'crun: {ended}'}")


def write_json(path: str, value: object) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w") as file:
        json.dump(value, file)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
