"""Streams passed in by the host, joined to a process's pipes or terminal."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

from shim.guest.pump import Pump, SplicePump

# CloseStdin for a passed stdin: bytes still on their way from the host's device.
_LATE_STDIN_S = 0.2
# How long after the exit of a process its children may go on writing to its output. Whoever waits for the
# end of that output (ctr does) waits this long for a daemon that was left behind with it.
_HELD_S = 10.0
# After half-closing an output: how long the host may take to close its side before we shut down ours fully (a
# VMM may ignore half-closes), and how long the socket is kept after that for what is queued in it.
_HALF_CLOSE_S = 1.0
_LINGER_S = 60.0


class HalfClosed:
    """An output stream that gets no more bytes: owns the socket and closes it when the host has taken all.

    A vsock socket closed at once may be reset with bytes still queued. So: half-close, then wait for the host
    to close its side; a host that does not react to a half-close gets a full shutdown (sent behind the data,
    as the half-close is), and the socket goes later.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_HALF_CLOSE_S, self._on_late)
        try:
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            self._finish()  # the host was first
        else:
            self._loop.add_reader(stream, self._on_readable)

    def _on_readable(self) -> None:
        try:
            if self._stream.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass  # reset: closed as well
        self._finish()

    def _on_late(self) -> None:
        self._loop.remove_reader(self._stream)
        try:
            self._stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            self._finish()
        else:
            self._timer = self._loop.call_later(_LINGER_S, self._finish)

    def _finish(self) -> None:
        self._timer.cancel()
        self._loop.remove_reader(self._stream)
        self._stream.close()


class PassedOutput:
    """A pump from a pipe or pty to a vsock connection; owns both.

    After a lost connection the output is read and thrown away, so that the loss of its reader does not stop
    or kill a container; with no connection at all (`stream=None`) that is so from the beginning.
    """

    def __init__(self, source: int, stream: socket.socket | None, *, pty: bool) -> None:
        self._source, self._stream, self._pty = source, stream, pty
        self._null = -1
        self._timer: asyncio.TimerHandle | None = None
        if stream is None:
            self._discard()
        else:
            self._pump = Pump(source, stream.fileno(), self._on_end)
            self._pump.start()

    @property
    def ended(self) -> bool:
        return self._source < 0

    def _discard(self) -> None:
        self._null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
        # /dev/null takes everything, so this pump never waits for its sink (which epoll would refuse).
        self._pump = Pump(self._source, self._null, self._on_end)
        self._pump.start()

    def _on_end(self, sink_gone: bool) -> None:
        if sink_gone and self._stream is not None:
            self._stream.close()
            self._stream = None
            self._discard()
        else:
            self._release()

    def _release(self) -> None:
        if self._source < 0:
            return
        os.close(self._source)
        self._source = -1
        if self._timer is not None:
            self._timer.cancel()
        if self._null >= 0:
            os.close(self._null)
        if self._stream is not None:
            HalfClosed(self._stream)

    async def on_exit(self, grace_s: float) -> None:
        """The process has ended. Returns when what it wrote is in the connection, or stalls for `grace_s`.

        A child of it that holds the pipe is heard for _HELD_S more; then the host gets its end.
        """
        target = None if self._pty else self._pump.due()
        self._arm(target or 0)
        await self._pump.settle(target, grace_s)

    def _arm(self, target: int) -> None:
        if not self.ended and self._stream is not None:
            self._timer = asyncio.get_running_loop().call_later(_HELD_S, self._cut, target)

    def _cut(self, target: int) -> None:
        if self.ended or self._stream is None:
            return
        if self._pump.blocked or self._pump.moved < target:
            self._arm(target)  # a slow host is no reason to lose anything
            return
        self._pump.stop()
        HalfClosed(self._stream)
        self._stream = None
        self._discard()

    def close(self) -> None:
        """Stop at once. Idempotent."""
        self._pump.stop()
        self._release()


class PassedInput:
    """A pump from a vsock connection to a pipe or pty; owns both.

    The end of the connection closes the pipe after its last byte; a terminal stays open for its output.
    """

    def __init__(self, stream: socket.socket, sink: int) -> None:
        self._stream, self._sink = stream, sink
        kind = SplicePump if stat.S_ISFIFO(os.fstat(sink).st_mode) else Pump
        self._pump = kind(stream.fileno(), sink, lambda _sink_gone: self._release())
        self._pump.start()

    def _release(self) -> None:
        if self._sink >= 0:
            os.close(self._sink)
            self._sink = -1
            self._stream.close()

    def end(self) -> None:
        """For a host that cannot half-close a stream: close after what has arrived by now."""
        asyncio.get_running_loop().call_later(_LATE_STDIN_S, self._pump.finish)

    def close(self) -> None:
        """Stop at once. Idempotent."""
        self._pump.stop()
        self._release()
