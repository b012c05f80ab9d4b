"""The guest's serial console, read so that a guest that floods it costs us nothing.

Reads are paced: what comes faster stays in the socket, and QEMU drops what does not fit there (a serial line
has nowhere to keep it), so neither the guest nor we wait for the other.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from shim.children import Tail

_READ_SIZE = 16384
_PAUSE_S = 0.02  # at most 50 reads, 800 KB a second


class Console:
    """Owns `sock`, our end of the console. `on_line` gets every line; `text` is the end of all."""

    def __init__(self, sock: socket.socket, on_line: Callable[[str], None] | None) -> None:
        self._sock = sock
        self._tail = Tail(on_line)
        self._loop = asyncio.get_running_loop()
        self._pause: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._listen()

    @property
    def text(self) -> str:
        return self._tail.text()

    def close(self) -> None:
        """Take what is still in the socket and close it. Idempotent."""
        if self._sock.fileno() < 0:
            return
        self._stop_listening()
        self._read()
        self._tail.finish()
        self._sock.close()

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._sock.fileno(), self._on_readable)

    def _stop_listening(self) -> None:
        self._loop.remove_reader(self._sock.fileno())
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None

    def _on_readable(self) -> None:
        self._stop_listening()
        if self._read():
            self._pause = self._loop.call_later(_PAUSE_S, self._listen)

    def _read(self) -> bool:
        """False at the end of the stream."""
        try:
            data = self._sock.recv(_READ_SIZE)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False  # QEMU is gone, which its pidfd tells better
        self._tail.feed(data)
        return bool(data)
