"""Programs we run beside us: QEMU, virtiofsd, the vsock device.

A child gets its own session, only the fds it is given, and dies with us (PR_SET_PDEATHSIG). Its output is
read all the time into a bounded tail, its end is seen by a pidfd, and it is reaped here and nowhere else.

How it dies with us: `setpriv --pdeathsig KILL` (util-linux, on every Debian) makes the prctl between our
vfork and the exec of the program. Python's `preexec_fn` would do it without another exec, but needs a full
fork, runs Python code in the child of a process that may have threads, and copies page tables; posix_spawn
has no attribute for it. The kernel sends the signal when the *thread* that forked ends, so `spawn` insists on
the main thread. It sends nothing for a parent that was gone before the prctl, so a shell (half a millisecond) looks
whose child it is afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from shim.errors import ChildFailed, FailedPrecondition, NotFound

_READ_SIZE = 65536
_PIPE_READS = 4


class Tail:
    """The end of an output stream, bounded, and its lines as they come.

    A line longer than `line_limit` bytes is cut into several: memory stays bounded whatever is written.
    """

    def __init__(
        self, on_line: Callable[[str], None] | None = None, limit: int = 8192, line_limit: int = 1024
    ) -> None:
        self._on_line, self._limit, self._line_limit = on_line, limit, line_limit
        self._kept = b""
        self._line = b""

    def feed(self, data: bytes) -> None:
        self._kept = (self._kept + data)[-self._limit :]
        if self._on_line is None:
            return
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self._tell(line)
        while len(self._line) > self._line_limit:
            self._tell(self._line[: self._line_limit])
            self._line = self._line[self._line_limit :]

    def finish(self) -> None:
        """No more comes: a last line without newline is a line too."""
        line, self._line = self._line, b""
        self._tell(line)

    def text(self) -> str:
        return self._kept.decode(errors="replace")

    def _tell(self, line: bytes) -> None:
        for start in range(0, len(line), self._line_limit):
            text = line[start : start + self._line_limit].decode(errors="replace").strip()
            if text and self._on_line is not None:
                self._on_line(text)


class Child:
    """A running or ended program, `output` being the read end of its stdout and stderr. Made by `spawn`."""

    def __init__(self, argv: Sequence[str], pid: int, output: IO[bytes], tail: Tail) -> None:
        self.argv = tuple(argv)
        self.pid = pid
        self._output, self._tail = output, tail
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        os.set_blocking(self._output.fileno(), False)
        self._loop.add_reader(self._output.fileno(), self._on_output)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._on_end)

    @property
    def output_tail(self) -> str:
        """The end of what the program wrote to stderr and stdout."""
        return self._tail.text()

    @property
    def status(self) -> int | None:
        """Exit code, or the negative number of the signal that ended it; None while it runs."""
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        """Until it has ended and is reaped; its `status`. Any number of callers, also afterwards."""
        return await asyncio.shield(self._ended)

    def send_signal(self, number: int) -> None:
        """Signal the program; nothing happens when it has ended."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError):  # ended, and the loop has not told us yet
                signal.pidfd_send_signal(self._pidfd, number)

    async def terminate(self, timeout_s: float) -> int:
        """SIGTERM, after `timeout_s` SIGKILL; returns the status when it is reaped. Idempotent.

        When the caller is cancelled meanwhile, the program is killed at once and reaped in the background.
        """
        self.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(timeout_s):
                return await self.wait()
        except TimeoutError:
            return await self.kill()
        except asyncio.CancelledError:
            self.send_signal(signal.SIGKILL)
            raise

    async def kill(self) -> int:
        self.send_signal(signal.SIGKILL)
        return await self.wait()

    def failure(self) -> ChildFailed:
        """The error that says how it ended. Only after its end."""
        return ChildFailed(self.argv, self._ended.result(), self.output_tail)

    def _on_output(self) -> None:
        """One read per wake-up: a program that floods us gets its share of the loop and no more."""
        try:
            data = os.read(self._output.fileno(), _READ_SIZE)
        except BlockingIOError:
            return
        if data:
            self._tail.feed(data)
        else:
            self._close_output()

    def _close_output(self) -> None:
        if not self._output.closed:
            self._loop.remove_reader(self._output.fileno())
            self._output.close()
            self._tail.finish()

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        # The zombie still holds the number of its process group: what it left behind goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
        os.close(self._pidfd)
        assert result is not None
        status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        # What the program wrote last is still in the pipe, which holds no more than these reads take. It may
        # never end by itself: somebody who left the group can have its other end.
        for _ in range(_PIPE_READS):
            if not self._output.closed:
                self._on_output()
        self._close_output()
        self._ended.set_result(status)


def find_program(candidates: Sequence[str]) -> str:
    """The first that exists of names (looked up in PATH) and paths. Raises NotFound naming them all."""
    for candidate in candidates:
        found = shutil.which(candidate)
        if found is not None:
            return found
    raise NotFound(f"program not found: {' or '.join(candidates)}")


def spawn(
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Child:
    """Start a program. `argv[0]` is a name in PATH or a path; the child keeps `pass_fds` under their numbers.

    stdin is /dev/null; stdout and stderr go to the tail and, line by line, to `on_line`. Must be called in
    the main thread with a running loop. Raises NotFound when there is no such program.
    """
    if threading.current_thread() is not threading.main_thread():
        raise FailedPrecondition("children are spawned from the main thread: they die with their thread")
    program = find_program(argv[:1])
    wrapper = [find_program(["setpriv"]), "--pdeathsig", "KILL", "--"]
    wrapper += ["/bin/sh", "-c", '[ $PPID -eq $0 ] && exec "$@"', str(os.getpid()), program]
    process = subprocess.Popen(
        [*wrapper, *argv[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
        pass_fds=tuple(pass_fds),
        env=env,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        child = Child(argv, process.pid, process.stdout, Tail(on_line))
    except OSError:
        process.kill()
        process.wait()
        raise
    process.returncode = 0  # or subprocess would try to reap it as well
    return child


def spawn_with_fds(argv: Sequence[str], fds: Mapping[int, int], env: Mapping[str, str]) -> Child:
    """Start a program that does not die with us. `argv[0]` is a path; `fds` maps the child's numbers (from 3 to
    9) to our descriptors, `env` is all of its environment.

    stdin is /dev/null; stdout and stderr go to the tail. Needs a running loop. Raises NotFound when the program is
    not there or cannot be run.
    """
    read, write = os.pipe()
    # Out of the way of the child's numbers. They close in the child by themselves.
    sources = {
        number: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)
        for number, fd in {1: write, 2: write, **fds}.items()
    }
    try:
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable() if fd > 2]
        actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in sources.items()]
        defaults = (signal.SIGPIPE, signal.SIGXFSZ)  # Python ignores them, which an exec keeps
        pid = os.posix_spawn(argv[0], tuple(argv), env, file_actions=actions, setsid=True, setsigdef=defaults)
    except OSError as error:
        os.close(read)
        raise NotFound(f"{argv[0]}: {error.strerror}") from error
    finally:
        for fd in (write, *sources.values()):
            os.close(fd)
    return Child(argv, pid, os.fdopen(read, "rb", buffering=0), Tail())


def _inheritable() -> list[int]:
    """Our descriptors that an exec keeps: those we were started with."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            if os.get_inheritable(int(name)):
                found.append(int(name))
    return found
