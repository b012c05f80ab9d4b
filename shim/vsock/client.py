"""The daemon's side of the vsock device's socket (protocol: `api.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import re
import socket
from pathlib import Path

from shim.errors import DeadlineExceeded, Unavailable
from shim.vsock.api import Stream, StreamRefused, StreamStat

# The longest line the device sends is DRAINED with three 20 digit numbers.
_MAX_LINE = 128
# A guest that is booting refuses, or drops a request that came while its driver was starting.
_RETRY_S = 0.01
_MAX_RETRY_S = 0.1
_ATTEMPT_S = 3.0
# The device answers verbs from memory; one that does not is busy or gone.
_VERB_S = 2.0

_OK = re.compile(rb"OK (\d{1,10})")
_COUNTS = rb" rx=(\d{1,20}) tx=(\d{1,20}) stalls=(\d{1,20})"
_DRAINED, _STAT = re.compile(b"DRAINED" + _COUNTS), re.compile(b"STAT" + _COUNTS)


class Refused(Exception):
    """The device closed the socket without an answer: nobody listens on the guest's port, or not yet."""


class DeviceClient:
    """`api.VsockDevice` over the device's Unix socket at `path`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        return (await self.open(port, timeout_s))[0]

    async def open(self, port: int, timeout_s: float) -> tuple[socket.socket, int]:
        """As `connect`, with the vsock port that the guest sees as its peer's."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        pause = _RETRY_S
        while True:
            left = deadline - loop.time()
            if left <= 0:
                raise DeadlineExceeded(
                    f"nothing answers on the guest's vsock port {port} after {timeout_s:g} s"
                )
            sock = None
            try:
                async with asyncio.timeout(min(left, _ATTEMPT_S)):
                    sock = await self._dial()
                    await loop.sock_sendall(sock, b"CONNECT %d\n" % port)
                    return sock, await _answer(sock)
            except (Refused, OSError):  # also a TimeoutError; a device that is gone is told by the next try
                _close(sock)
            except BaseException:
                _close(sock)
                raise
            # loop.time() again: an attempt that timed out has waited enough
            await asyncio.sleep(min(pause, max(0.0, deadline - loop.time())))
            pause = min(pause * 2, _MAX_RETRY_S)

    async def pass_fd(self, fd: int, port: int, timeout_s: float) -> Stream:
        sock = None
        try:
            async with asyncio.timeout(timeout_s):
                sock = await self._dial()
                await asyncio.get_running_loop().sock_sendall(sock, b"passfd\n")
                # The socket's buffer is empty but for one line: this cannot block.
                socket.send_fds(sock, [b"%d stream" % port], [fd])
                host_port = await _answer(sock)
            return _Stream(sock, host_port)
        except TimeoutError as error:
            _close(sock)
            raise DeadlineExceeded(f"the guest does not take a stream on vsock port {port}") from error
        except (Refused, OSError) as error:
            _close(sock)
            raise StreamRefused(f"the guest refuses a stream on vsock port {port}: {error}") from error
        except BaseException:
            _close(sock)
            raise

    async def _dial(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(sock, str(self._path))
            while not _connected(sock):
                await asyncio.sleep(_RETRY_S)
                await asyncio.get_running_loop().sock_connect(sock, str(self._path))
        except OSError as error:
            sock.close()
            raise Unavailable(f"the vsock device is gone: {self._path}: {error.strerror}") from error
        except BaseException:
            sock.close()
            raise
        return sock


def _connected(sock: socket.socket) -> bool:
    """A device that has too many callers waiting says EAGAIN, which asyncio takes for a connection under way."""
    try:
        sock.getpeername()
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return False
        raise
    return True


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()


async def _answer(sock: socket.socket) -> int:
    """The host port of the device's OK line. Not a byte more is read: it would be the guest's."""
    loop = asyncio.get_running_loop()
    line = bytearray()
    while not line.endswith(b"\n"):
        try:
            byte = await loop.sock_recv(sock, 1)
        except OSError as error:
            raise Refused(error.strerror) from error
        if not byte or len(line) > _MAX_LINE:
            raise Refused("no answer")
        line += byte
    match = _OK.fullmatch(bytes(line[:-1]))
    if match is None:
        raise Refused(f"unexpected answer {bytes(line)!r}")
    return int(match[1])


class _Stream:
    """A passed fd. Its control connection is read by one task until the device closes it.

    A plain Dragonball device closes it at once: then `_ended` is set and `_drained` stays None.
    """

    def __init__(self, sock: socket.socket, host_port: int) -> None:
        self._sock, self._host_port = sock, host_port
        self._drained: StreamStat | None = None
        self._ended = asyncio.Event()
        self._stats: list[asyncio.Future[StreamStat | None]] = []
        self._reader = asyncio.create_task(self._read(), name=f"stream {host_port}")
        # Not in a `finally` of the task: one that is cancelled before it ran has none.
        self._reader.add_done_callback(self._finish)

    @property
    def host_port(self) -> int:
        return self._host_port

    async def eof(self) -> bool:
        # Asking for the counters as well tells a device that knows the verb from one that is about to close.
        answered = await self._ask(b"eof\nstat\n") is not None
        return answered or self._drained is not None

    async def stat(self) -> StreamStat | None:
        return await self._ask(b"stat\n") or self._drained

    async def drained(self) -> StreamStat | None:
        await self._ended.wait()
        return self._drained

    def abandon(self) -> None:
        if not self._ended.is_set():
            with contextlib.suppress(OSError):  # the device closes or has closed the stream itself
                self._sock.send(b"close\n")

    def close(self) -> None:
        self._reader.cancel()

    async def _ask(self, verbs: bytes) -> StreamStat | None:
        if self._ended.is_set():
            return None
        future: asyncio.Future[StreamStat | None] = asyncio.get_running_loop().create_future()
        self._stats.append(future)  # until its answer comes, even when nobody waits for it any more
        try:
            self._sock.send(verbs)
            async with asyncio.timeout(_VERB_S):
                return await future
        except (OSError, TimeoutError):
            return None

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        buffer = b""
        try:
            while chunk := await loop.sock_recv(self._sock, 4096):
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    self._on_line(line)
                if len(buffer) > _MAX_LINE:
                    return
        except OSError:
            pass  # reset: as good as closed

    def _on_line(self, line: bytes) -> None:
        if match := _DRAINED.fullmatch(line):
            self._drained = _counts(match)
        elif (match := _STAT.fullmatch(line)) and self._stats:
            future = self._stats.pop(0)
            if not future.done():
                future.set_result(_counts(match))

    def _finish(self, _reader: asyncio.Task[None]) -> None:
        self._ended.set()
        for future in self._stats:
            if not future.done():
                future.set_result(None)
        self._stats.clear()
        self._sock.close()


def _counts(match: re.Match[bytes]) -> StreamStat:
    return StreamStat(*(int(number) for number in match.groups()))
