"""The standard streams of one process: what it gets as fds 0, 1, 2 and where the bytes go.

Three kinds, chosen when the process is created:

    passed     a pump between a pipe and a vsock connection the host passed in
    rpc        our end of a pipe is kept for WriteStdin, ReadStdout, ReadStderr
    nothing    /dev/null

A process always gets a pipe in blocking mode, never a socket (a socket cannot be opened through /dev/stdout)
and never our end's O_NONBLOCK (the two ends of a pipe are separate descriptions). With a terminal it gets a
pty that crun makes; the streams are attached to its master once crun has handed that over.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Sequence

from shim import errors
from shim.guest.passio import PassedInput, PassedOutput
from shim.guest.rpcio import RpcInput, RpcOutput

# Time a passed output may stand still after the exit of its process before WaitProcess answers anyway.
EXIT_GRACE_S = 2.0
PIPE_SIZE = 1024 * 1024


class Stdio:
    """`open` before the process is started, then `attach` or `abandon`. Owns the streams it is given."""

    def __init__(
        self,
        streams: Sequence[socket.socket | None],
        *,
        terminal: bool,
        rpc: bool,
        owner: tuple[int, int] = (0, 0),
        pipe_size: int = PIPE_SIZE,
    ) -> None:
        """`streams`: the passed connections for stdin, stdout, stderr; `rpc`: streams are fetched by RPC; `owner`:
        who may open a pipe again, through /dev/stdout (uid, gid; outside of a user namespace)."""
        self.terminal = terminal
        self._streams = list(streams)
        self._rpc = rpc
        self._owner, self._pipe_size = owner, pipe_size
        self._child: list[int] = []
        self._parent = [-1, -1, -1]
        self._master = -1
        self._stdin: RpcInput | PassedInput | None = None
        self._outputs: list[RpcOutput | PassedOutput | None] = [None, None]

    def open(self) -> tuple[int, int, int]:
        """Make the descriptors to start the process (or crun, with a terminal) with."""
        for number in range(3):
            wanted = not self.terminal and (self._rpc or self._streams[number] is not None)
            child = self._pipe(number) if wanted else os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
            self._child.append(child)
        return self._child[0], self._child[1], self._child[2]

    def _pipe(self, number: int) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        if number == 0:
            child, self._parent[number] = reader, writer
        else:
            child, self._parent[number] = writer, reader
        os.set_blocking(self._parent[number], False)
        grow_pipe(writer, self._pipe_size)
        if self._owner != (0, 0):  # crun sees to it from inside, as far as it may
            os.fchown(child, *self._owner)
        return child

    def attach(self, master: int = -1) -> None:
        """The process runs: close its ends here, let the bytes flow. `master` (owned) is its terminal's."""
        self._close_child()
        if self.terminal:
            self._attach_terminal(master)
            return
        stdin = self._take(0)
        if stdin >= 0:
            stream = self._take_stream(0)
            self._stdin = RpcInput(stdin, closable=True) if stream is None else PassedInput(stream, stdin)
        for number in (1, 2):
            source = self._take(number)
            if source >= 0:
                stream = self._take_stream(number)
                self._outputs[number - 1] = (
                    RpcOutput(source) if stream is None else PassedOutput(source, stream, pty=False)
                )

    def _attach_terminal(self, master: int) -> None:
        self._master = master
        os.set_blocking(master, False)
        stdin, stdout = self._take_stream(0), self._take_stream(1)
        if self._rpc:
            self._stdin = RpcInput(_duplicate(master), closable=False)
            self._outputs = [RpcOutput(_duplicate(master))] * 2
        else:
            if stdin is not None:
                self._stdin = PassedInput(stdin, _duplicate(master))
            # A terminal's output is read also when nobody wants it, or its program would stop.
            self._outputs[0] = PassedOutput(_duplicate(master), stdout, pty=True)
        stderr = self._take_stream(2)
        if stderr is not None:
            stderr.close()

    def _take(self, number: int) -> int:
        fd, self._parent[number] = self._parent[number], -1
        return fd

    def _take_stream(self, number: int) -> socket.socket | None:
        stream, self._streams[number] = self._streams[number], None
        return stream

    def _close_child(self) -> None:
        while self._child:
            os.close(self._child.pop())

    def abandon(self) -> None:
        """The process was not started: nothing of its streams stays. Idempotent."""
        self._close_child()
        for number in range(3):
            fd, stream = self._take(number), self._take_stream(number)
            if fd >= 0:
                os.close(fd)
            if stream is not None:
                stream.close()

    async def write(self, data: bytes) -> int:
        """WriteStdin: all of `data`; empty data is the end of stdin."""
        if not isinstance(self._stdin, RpcInput):
            raise errors.FailedPrecondition("stdin is not written by RPC")
        if not data:
            self._stdin.end()
            return 0
        return await self._stdin.write(data)

    async def read(self, number: int, size: int) -> bytes:
        """ReadStdout (1) or ReadStderr (2); b"" is the end."""
        output = self._outputs[number - 1]
        if not isinstance(output, RpcOutput):
            raise errors.FailedPrecondition("the stream is not read by RPC")
        return await output.read(size)

    def end_stdin(self) -> None:
        """No more input: close stdin after what is there. Idempotent; a terminal stays open."""
        if self._stdin is not None and not self.terminal:
            self._stdin.end()

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size."""
        if self._master < 0:
            raise errors.Unavailable("no tty")
        set_window(self._master, rows, columns)

    async def on_exit(self) -> None:
        """The process has ended: drop its input, return when what it wrote is in the passed streams (bounded,
        see PassedOutput.on_exit). Output goes on for a while if a child of it holds the pipe."""
        if self._stdin is not None:
            self._stdin.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1
        flushes = []
        for output in self._outputs:
            if isinstance(output, PassedOutput):
                flushes.append(output.on_exit(EXIT_GRACE_S))
            elif output is not None:
                output.on_exit()
        await asyncio.gather(*flushes)

    def forget(self) -> None:
        """The process has ended, and nobody can ask for its output any more. What is passed goes on to its end."""
        for output in self._outputs:
            if isinstance(output, RpcOutput):
                output.close()

    @property
    def ended(self) -> bool:
        """No output is still open or unread."""
        return all(output.ended for output in self._outputs if output is not None)

    def close(self) -> None:
        """Close everything now. Idempotent."""
        self.abandon()
        if self._stdin is not None:
            self._stdin.close()
        for output in self._outputs:
            if output is not None:
                output.close()
        if self._master >= 0:
            os.close(self._master)
            self._master = -1


def set_window(terminal: int, rows: int, columns: int) -> None:
    """A terminal's size, cut to the 16 bits the kernel has."""
    size = struct.pack("HHHH", min(rows, 0xFFFF), min(columns, 0xFFFF), 0, 0)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, size)


def grow_pipe(fd: int, size: int) -> None:
    """Best effort: limits or a kernel short of memory leave the pipe as it was."""
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size)
    except OSError:
        return


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
