"""Streams the host passed in ("passfd"): vsock connections waiting for the process they belong to.

The host hands a FIFO to its vsock device, which connects to our passfd port; the host side's port number is
the name of the stream in CreateContainer and ExecProcess. Connection and request travel separately, so either
may be first.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from shim import errors
from shim.log import Log

# A stream nobody asks for, e.g. because its RPC failed before it was sent.
UNCLAIMED_S = 60.0
# A host that opens streams without using them gets its oldest ones closed.
_MAX_UNCLAIMED = 1024
_ACCEPT_PAUSE_S = 0.1


class Streams:
    """Connections by host port, each handed out once."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._arrived: dict[int, tuple[socket.socket, asyncio.TimerHandle]] = {}
        self._wanted: dict[int, asyncio.Future[socket.socket]] = {}
        self._listener: socket.socket | None = None

    def listen(self, listener: socket.socket) -> None:
        """Accept from a listening socket (owned from now on)."""
        listener.setblocking(False)
        self._listener = listener
        asyncio.get_running_loop().add_reader(listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        while True:
            try:
                stream, address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # The connection broke before we took it, or descriptors ran out: not to be tried at once.
                self._log.warning("passfd accept failed", error=error)
                asyncio.get_running_loop().remove_reader(self._listener)
                asyncio.get_running_loop().call_later(_ACCEPT_PAUSE_S, self._resume)
                return
            stream.setblocking(False)
            self.arrive(address[1], stream)

    def _resume(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def arrive(self, port: int, stream: socket.socket) -> None:
        """A connection from host port `port`."""
        wanted = self._wanted.pop(port, None)
        if wanted is not None and not wanted.done():
            wanted.set_result(stream)
            return
        self._drop(port)
        while len(self._arrived) >= _MAX_UNCLAIMED:
            self._drop(next(iter(self._arrived)))
        timer = asyncio.get_running_loop().call_later(UNCLAIMED_S, self._drop, port)
        self._arrived[port] = (stream, timer)

    def _drop(self, port: int) -> None:
        stream, timer = self._arrived.pop(port, (None, None))
        if stream is not None and timer is not None:
            self._log.warning("stream was never claimed", port=port)
            timer.cancel()
            stream.close()

    async def claim(self, ports: Sequence[int], timeout_s: float) -> list[socket.socket | None]:
        """The streams of these ports, in their order; None for port 0.

        Waits until all have arrived. If one does not within `timeout_s`, raises DeadlineExceeded and closes
        those that did; so does a cancellation.
        """
        named = [port for port in ports if port]
        if len(set(named)) != len(named):
            raise errors.InvalidArgument(f"one stream port is named twice: {named}")
        for port in named:
            if port in self._wanted:
                raise errors.AlreadyExists(f"stream port {port} is claimed by another request")
        futures = {port: self._take(port) for port in named}
        try:
            if futures:
                await asyncio.wait(futures.values(), timeout=timeout_s)
            missing = [port for port, future in futures.items() if not future.done()]
            if missing:
                raise errors.DeadlineExceeded(
                    f"no stream from host port {missing[0]} within {timeout_s:.3g} s"
                )
        except BaseException:
            for port, future in futures.items():
                self._wanted.pop(port, None)
                if future.done():
                    future.result().close()
                else:
                    future.cancel()
            raise
        return [futures[port].result() if port else None for port in ports]

    def _take(self, port: int) -> asyncio.Future[socket.socket]:
        future: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        stream, timer = self._arrived.pop(port, (None, None))
        if stream is not None and timer is not None:
            timer.cancel()
            future.set_result(stream)
        else:
            self._wanted[port] = future
        return future

    def close(self) -> None:
        """Stop listening and close what nobody claimed."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for port in list(self._arrived):
            self._drop(port)
