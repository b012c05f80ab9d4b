"""Forwarded ports: a TCP connection to the guest's loopback, joined to a vsock connection from the host.

`ForwardPort` dials the port first, so that the host learns of a refusal, and then listens on a vsock port of its own
for one connection. Whatever port is asked for is tried: the host decides who may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from shim import errors
from shim.guest.passio import HalfClosed
from shim.guest.pump import Pump
from shim.log import Log

# How long the host may take to come for a connection that it has asked for.
_CLAIM_S = 10.0
_CONNECT_S = 5.0
_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


def listen_on_any_port() -> tuple[socket.socket, int]:
    """A vsock socket that listens, and its port."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
    listener.listen(1)
    return listener, listener.getsockname()[1]


class PortForward:
    """All forwarded connections of the guest. `listen` is for tests."""

    def __init__(
        self, log: Log, listen: Callable[[], tuple[socket.socket, int]] = listen_on_any_port
    ) -> None:
        self._log, self._listen = log, listen
        self._joined: set[Join] = set()
        self._waiting: set[asyncio.Task[None]] = set()

    async def connect(self, port: int) -> int:
        """The vsock port that takes one connection for what listens on the loopback's TCP port. Unavailable
        if nothing does."""
        if not 0 < port < 1 << 16:
            raise errors.InvalidArgument(f"{port} is no TCP port")
        target = await _dial(port)
        try:
            listener, vsock_port = self._listen()
        except OSError as error:
            target.close()
            raise errors.Internal(f"no vsock port: {error.strerror}") from error
        listener.setblocking(False)
        task = asyncio.create_task(self._accept(listener, target))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)
        return vsock_port

    async def _accept(self, listener: socket.socket, target: socket.socket) -> None:
        try:
            async with asyncio.timeout(_CLAIM_S):
                stream, _ = await asyncio.get_running_loop().sock_accept(listener)
        except (TimeoutError, OSError) as error:
            self._log.warning("a forwarded connection was never claimed", error=error)
            target.close()
            return
        except asyncio.CancelledError:
            target.close()
            raise
        finally:
            listener.close()
        stream.setblocking(False)
        self._joined.add(Join(stream, target, self._joined.discard))

    async def aclose(self) -> None:
        for task in self._waiting:
            task.cancel()
        await asyncio.gather(*self._waiting, return_exceptions=True)
        for join in list(self._joined):
            join.close()


async def _dial(port: int) -> socket.socket:
    """A process may listen on either of the loopback's addresses, and the host cannot know on which."""
    failures: list[str] = []
    for family, address in _LOOPBACKS:
        target = socket.socket(family, socket.SOCK_STREAM)
        target.setblocking(False)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await asyncio.get_running_loop().sock_connect(target, (address, port))
            target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return target
        except OSError as error:  # also a TimeoutError
            target.close()
            failures.append(f"{address}: {os.strerror(error.errno) if error.errno else 'no answer'}")
        except BaseException:
            target.close()
            raise
    raise errors.Unavailable(f"port {port}: {', '.join(failures)}")


class Join:
    """Two connected sockets, both owned: what comes from either goes to the other, its end too."""

    def __init__(self, stream: socket.socket, target: socket.socket, on_end: Callable[[Join], None]) -> None:
        self._stream, self._target, self._on_end = stream, target, on_end
        self._open = True
        self._pumps = (
            Pump(target.fileno(), stream.fileno(), lambda gone: self._ended(gone, stream)),
            # The loop has one reader and one writer for each descriptor, so both pumps can use the same two.
            Pump(stream.fileno(), target.fileno(), lambda gone: self._ended(gone, target)),
        )
        for pump in self._pumps:
            pump.start()

    def _ended(self, sink_gone: bool, sink: socket.socket) -> None:
        if not self._open:
            return
        if all(pump.ended for pump in self._pumps) or (sink_gone and sink is self._stream):
            self.close()
            return
        # A server that takes no more may have said something before: that is still on its way.
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Idempotent. The host gets what is in the vsock connection by now."""
        if not self._open:
            return
        self._open = False
        for pump in self._pumps:
            pump.stop()
        self._target.close()
        HalfClosed(self._stream)
        self._on_end(self)
