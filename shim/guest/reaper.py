"""The one place where children are started and reaped.

The agent is pid 1: it inherits every orphan, so only a waitpid for any child can work, and no library that
waits for its own children can be used beside it. A container's process is not forked by us but by crun, which
ends before it; we learn its pid from a file when it may have ended already. Statuses of pids nobody asked for
are therefore kept as long as somebody may still ask (`adopting`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator, Sequence

# Python ignores the first two, and whoever has started it may ignore the others; a program that is executed must not
# inherit that.
_DEFAULTED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)


class Reaper:
    """Futures of exit statuses (as waitpid gives them) by pid. All methods belong to the loop's thread."""

    def __init__(self) -> None:
        self._watched: dict[int, asyncio.Future[int]] = {}
        self._strays: dict[int, int] = {}
        self._adopters = 0
        self._wakeup: tuple[socket.socket, ...] = ()

    def install(self) -> None:
        """Reap whenever SIGCHLD arrives, in the running loop, which must be the main thread's.

        By a wake-up socket of our own: the loop's add_signal_handler checks its argument with `inspect`, whose
        import takes as long as half of asyncio's.
        """
        ours, interpreters = socket.socketpair()
        ours.setblocking(False)
        interpreters.setblocking(False)
        self._wakeup = ours, interpreters
        # A full socket wakes as well as one more byte in it.
        signal.set_wakeup_fd(interpreters.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)  # without one there is no byte
        signal.siginterrupt(signal.SIGCHLD, False)
        asyncio.get_running_loop().add_reader(ours, self._on_signal)

    def uninstall(self) -> None:
        """Undo `install`, in the same loop."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        asyncio.get_running_loop().remove_reader(self._wakeup[0])
        for end in self._wakeup:
            end.close()
        self._wakeup = ()

    def _on_signal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup[0].recv(4096)
        self.reap()

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            future = self._watched.pop(pid, None)
            if future is not None:
                if not future.done():
                    future.set_result(status)
            elif self._adopters:
                self._strays[pid] = status

    @contextlib.contextmanager
    def adopting(self) -> Iterator[None]:
        """While inside, `watch` may be called for a child that we did not start, even if it has ended."""
        self._adopters += 1
        try:
            yield
        finally:
            self._adopters -= 1
            if not self._adopters:
                self._strays.clear()

    def watch(self, pid: int) -> asyncio.Future[int]:
        """The future exit status of a child or an adopted one; await it through `asyncio.shield`."""
        future = self._watched.get(pid)
        if future is None:
            future = asyncio.get_running_loop().create_future()
            stray = self._strays.pop(pid, None)
            # A pid that exists cannot be the one we reaped: the number was given again.
            if stray is not None and not _exists(pid):
                future.set_result(stray)
            else:
                self._watched[pid] = future
        return future

    def spawn(
        self, path: str, argv: list[str], stdio: tuple[int, int, int], env: dict[str, str]
    ) -> tuple[int, asyncio.Future[int]]:
        """Start a program in a session of its own with these three descriptors; (pid, future status)."""
        return self._spawn(
            path, argv, env, [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(stdio)]
        )

    def spawn_on_terminal(
        self, path: str, argv: list[str], terminal: str, env: dict[str, str]
    ) -> tuple[int, asyncio.Future[int]]:
        """The same on a terminal device, which becomes its controlling one: the first that a session's leader
        opens does."""
        actions: list[tuple[object, ...]] = [(os.POSIX_SPAWN_OPEN, 0, terminal, os.O_RDWR, 0)]
        return self._spawn(path, argv, env, [*actions, *((os.POSIX_SPAWN_DUP2, 0, n) for n in (1, 2))])

    def _spawn(
        self, path: str, argv: list[str], env: dict[str, str], actions: Sequence[tuple[object, ...]]
    ) -> tuple[int, asyncio.Future[int]]:
        pid = os.posix_spawn(path, argv, env, file_actions=actions, setsid=True, setsigdef=_DEFAULTED)
        return pid, self.watch(pid)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def exit_code(status: int) -> int:
    """A shell's view of a wait status: the code, or 128 + the signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
