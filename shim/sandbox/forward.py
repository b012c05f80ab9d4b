"""Port forwarding: a TCP connection to the loopback of the pod's namespace becomes one to the guest's loopback.

kubelet and containerd enter the namespace and dial localhost, at a port that nobody knows in advance. The namespace
gives us every such connection (`network.api.Attachment`); the agent is asked to connect to the same port, and the
accepted socket is handed to the vsock device as the host end of a connection to where the agent waits for it.
From then on its bytes pass us by.

A guest that refuses, or whose agent does not know of this (Kata's), shows as a reset: by then the kernel has
accepted the connection.
"""

from __future__ import annotations

import asyncio
import socket
import struct

from shim.agent.api import Agent
from shim.errors import ShimError
from shim.log import Log
from shim.sandbox.background import Background
from shim.vsock.api import VsockDevice

# Connections being set up; more wait in the listener's backlog.
_MAX_PENDING = 32
_SETUP_S = 10.0
_RESET_ON_CLOSE, _CLOSE = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


class PortForward:
    """Owns `listener`, whose accepted sockets have the address that was dialled as their own."""

    def __init__(self, listener: socket.socket, agent: Agent, device: VsockDevice, log: Log) -> None:
        self._listener, self._agent, self._device, self._log = listener, agent, device, log
        self._background = Background(log)
        self._pending = 0
        listener.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        asyncio.get_running_loop().add_reader(self._listener, self._on_readable)

    def _pause(self) -> None:
        asyncio.get_running_loop().remove_reader(self._listener)

    def _on_readable(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # out of descriptors: one that is being set up has to end first
            self._log.error("port forward: cannot accept", error=error)
            self._pause()
            asyncio.get_running_loop().call_later(1.0, self._listen)
            return
        self._pending += 1
        if self._pending == _MAX_PENDING:
            self._pause()
        self._background.spawn(self._forward(connection), "port forward")

    async def _forward(self, connection: socket.socket) -> None:
        try:
            await self._hand_over(connection)
        finally:
            connection.close()
            self._pending -= 1
            if self._pending == _MAX_PENDING - 1 and self._listener.fileno() >= 0:
                self._listen()

    async def _hand_over(self, connection: socket.socket) -> None:
        port = connection.getsockname()[1]
        _set_linger(connection, _RESET_ON_CLOSE)
        try:
            async with asyncio.timeout(_SETUP_S):
                guest_port = await self._agent.forward_port(port)
                # The socket's last holder may be the device, and its end an orderly one.
                _set_linger(connection, _CLOSE)
                stream = await self._device.pass_fd(connection.fileno(), guest_port, _SETUP_S)
        except (ShimError, TimeoutError) as error:
            _set_linger(connection, _RESET_ON_CLOSE)
            self._log.info("port forward: refused", port=port, error=error)
        else:
            stream.close()
            self._log.debug("port forward", port=port, host_port=stream.host_port)

    async def aclose(self) -> None:
        """Accept no more. Connections that were handed over end with the VM. Idempotent."""
        if self._listener.fileno() >= 0:
            self._pause()
            self._listener.close()
        await self._background.aclose()


def _set_linger(connection: socket.socket, value: bytes) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, value)
