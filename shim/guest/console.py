"""The debug console: who connects to its port gets a root shell on a terminal, as with Kata's agent.

There is none unless the kernel command line says `agent.debug_console`. It can be reached from the host alone,
through the vsock device's socket, which is root's. What Kata's has not, the terminal's size and how the shell ends,
goes by RPCs, which know a shell by the host's port of its connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from shim import errors
from shim.guest.passio import HalfClosed
from shim.guest.pump import Pump
from shim.guest.reaper import Reaper, exit_code
from shim.guest.stdio import set_window
from shim.log import Log

SHELL = "/bin/sh"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "TERM": "linux"}
# The shell has ended: how long what it left on the terminal may stand still.
_FLUSH_S = 0.5


class DebugConsole:
    """A shell for each connection."""

    def __init__(self, reaper: Reaper, log: Log, shell: str = SHELL) -> None:
        self._reaper, self._log, self._shell = reaper, log, shell
        self.sessions: dict[int, Session] = {}
        self._listener: socket.socket | None = None

    def listen(self, listener: socket.socket) -> None:
        """Accept from a non-blocking listening socket."""
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def session(self, host_port: int) -> Session:
        """The one whose connection comes from there. NotFound if there is none (any more)."""
        while host_port not in self.sessions and self._listener is not None:
            if not self._accept(self._listener):  # an RPC may be quicker than the loop
                break
        try:
            return self.sessions[host_port]
        except KeyError:
            raise errors.NotFound(f"no debug console with port {host_port}") from None

    def _accept(self, listener: socket.socket) -> bool:
        """Whether there was a connection."""
        try:
            connection, (_, host_port) = listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:  # gone before we took it, or out of descriptors
            self._log.warning("debug console", error=error)
            return False
        connection.setblocking(False)
        session = Session(connection, self._reaper, self._shell, lambda: self.sessions.pop(host_port, None))
        self.sessions[host_port] = session
        self._log.info("debug console opened", pid=session.pid)
        return True


class Session:
    """A shell joined to a connection, which it owns. Each ends with the other; `on_end` is called once, after both."""

    def __init__(
        self, connection: socket.socket, reaper: Reaper, shell: str, on_end: Callable[[], object]
    ) -> None:
        self._connection, self._on_end = connection, on_end
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        try:
            terminal = os.ttyname(slave)
            self.pid, self._exited = reaper.spawn_on_terminal(shell, [shell, "-i"], terminal, _ENVIRONMENT)
        finally:
            os.close(slave)
        self._input = Pump(connection.fileno(), self._master, lambda _sink_gone: self._close())
        self._output = Pump(self._master, connection.fileno(), lambda _sink_gone: self._close())
        self._input.start()
        self._output.start()
        self._watcher = asyncio.create_task(self._watch())

    def resize(self, rows: int, columns: int) -> None:
        if self._master >= 0:
            set_window(self._master, rows, columns)

    async def wait(self) -> int:
        """The shell's exit code, or 128 and the number of the signal that ended it."""
        return exit_code(await asyncio.shield(self._exited))

    async def _watch(self) -> None:
        await asyncio.shield(self._exited)
        await self._output.settle(None, _FLUSH_S)  # somebody in the background may hold the terminal
        self._close()
        self._on_end()

    def _close(self) -> None:
        """The terminal's end hangs up on whoever is still on it."""
        if self._master < 0:
            return
        self._input.stop()
        self._output.stop()
        os.close(self._master)
        self._master = -1
        HalfClosed(self._connection)
