"""What the daemon asks of the vsock device: connections to guest ports, and host fds as guest connections.

Host protocol (Dragonball's, extended): on the device's Unix socket a client sends one line.

    CONNECT <guest port>\\n           -> OK <host port>\\n, then the socket is the connection
    passfd\\n, then one message        -> OK <host port>\\n, then the passed fd is the connection
      "<guest port>" + SCM_RIGHTS fd       and the control socket is closed (Dragonball)
      "<guest port> keep" + fd             as Dragonball parses it
      "<guest port> stream" + fd           and the control socket stays open for this stream (ours)

A refused or failed request is answered by closing the socket without a line. On a `stream` control socket:

    client -> device   eof\\n    no more writers: read the fd until it is empty, then half-close to the guest
                       stat\\n   answered by STAT rx=<bytes> tx=<bytes> stalls=<n>\\n
                       close\\n  give the stream up: reset it towards the guest; bytes already here still go
                                to the fd, then DRAINED
    device -> client   DRAINED rx=<bytes> tx=<bytes> stalls=<n>\\n   the stream is closed and every byte is in the
                                                  fd; then the device closes the control socket

`rx` counts bytes the device moved guest -> host fd, `tx` host fd -> guest; `stalls` how often the host fd was
full. Closing the control socket does not end the stream.
"""

from __future__ import annotations

import socket
from typing import Protocol

from shim.errors import Unavailable
from shim.value import Value

# Of the device's Unix socket, in the sandbox's runtime directory.
SOCKET_NAME = "vsock.sock"
# Where the agent listens in the guest, Kata's too.
AGENT_PORT = 1024


class StreamRefused(Unavailable):
    """Nobody in the guest takes streams, or the device does not know how to pass them."""


class StreamStat(Value):
    """Bytes guest -> host (`rx`), host -> guest (`tx`), and how often the host's fd was full."""

    rx: int
    tx: int
    stalls: int


class Stream(Protocol):
    """A passed fd that is now one end of a vsock connection."""

    @property
    def host_port(self) -> int:
        """The vsock port the guest sees as its peer's; the name of the stream in agent RPCs."""

    async def eof(self) -> bool:
        """Nothing more will be written to the fd. False if the device has no control connection for it
        (a plain Dragonball device): the caller must then tell the agent. Idempotent."""

    async def stat(self) -> StreamStat | None:
        """Counters so far; None when the device does not give them."""

    async def drained(self) -> StreamStat | None:
        """Until every byte from the guest is in the fd and the connection is closed. None when the device
        went away or does not tell. Any number of callers, also afterwards."""

    def abandon(self) -> None:
        """End the stream from here: what the guest has not sent yet is lost, the fd gets what the device has and
        is closed. Nothing happens where the device does not know how. Idempotent."""

    def close(self) -> None:
        """Give up the control connection. Idempotent; does not end the stream."""


class VsockDevice(Protocol):
    """The device of one VM. All methods raise `errors.Unavailable` when the device or the guest is gone."""

    async def connect(self, port: int, timeout_s: float) -> socket.socket:
        """A non-blocking socket connected to a guest port; a refused connection (nobody listens yet) is
        retried until `timeout_s`, then `errors.DeadlineExceeded`."""

    async def pass_fd(self, fd: int, port: int, timeout_s: float) -> Stream:
        """Make `fd` the host end of a new connection to a guest port. `fd` stays the caller's, who may
        close it as soon as this returns; the device sets O_NONBLOCK on its open file description. StreamRefused
        when it is not taken, DeadlineExceeded when nothing is said for `timeout_s`."""
