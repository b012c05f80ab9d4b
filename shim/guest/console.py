"""The debug console: who connects to its port gets a root shell on a terminal, as with Kata's agent.

There is none unless the kernel command line says `agent.debug_console`. It can be reached from the host alone,
through the vsock device's socket, which is root's.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

from shim.guest.passio import HalfClosed
from shim.guest.pump import Pump
from shim.guest.reaper import Reaper
from shim.log import Log

SHELL = "/bin/sh"
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/", "TERM": "linux"}
# The shell has ended: how long what it left on the terminal may stand still.
_FLUSH_S = 0.5


class DebugConsole:
    """A shell for each connection."""

    def __init__(self, reaper: Reaper, log: Log, shell: str = SHELL) -> None:
        self._reaper, self._log, self._shell = reaper, log, shell
        self.sessions: set[Session] = set()

    def listen(self, listener: socket.socket) -> None:
        """Accept from a non-blocking listening socket."""
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # gone before we took it, or out of descriptors
            self._log.warning("debug console", error=error)
            return
        connection.setblocking(False)
        session = Session(connection, self._reaper, self._shell, self.sessions.discard)
        self.sessions.add(session)
        self._log.info("debug console opened", pid=session.pid)


class Session:
    """A shell joined to a connection, which it owns. Each ends with the other; `on_end` is called once, after both."""

    def __init__(
        self, connection: socket.socket, reaper: Reaper, shell: str, on_end: Callable[[Session], None]
    ) -> None:
        self._connection, self._on_end = connection, on_end
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        try:
            terminal = os.ttyname(slave)
            self.pid, exited = reaper.spawn_on_terminal(shell, [shell, "-i"], terminal, _ENVIRONMENT)
        finally:
            os.close(slave)
        self._input = Pump(connection.fileno(), self._master, lambda _sink_gone: self._close())
        self._output = Pump(self._master, connection.fileno(), lambda _sink_gone: self._close())
        self._input.start()
        self._output.start()
        self._watcher = asyncio.create_task(self._watch(exited))

    async def _watch(self, exited: asyncio.Future[int]) -> None:
        await asyncio.shield(exited)
        await self._output.settle(None, _FLUSH_S)  # somebody in the background may hold the terminal
        self._close()
        self._on_end(self)

    def _close(self) -> None:
        """The terminal's end hangs up on whoever is still on it."""
        if self._master < 0:
            return
        self._input.stop()
        self._output.stop()
        os.close(self._master)
        self._master = -1
        HalfClosed(self._connection)
