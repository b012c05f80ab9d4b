"""A connection together with its host end: a FIFO, a socket or any other descriptor that was passed to us."""

from __future__ import annotations

import _socket
import fcntl
import os
import stat

from .connection import Connection
from .handshake import Verbs

F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032
# Writer and reader of a full 64 KiB pipe fall into lock-step and halve the throughput.
PIPE_SIZE = 1 << 20
# The least and the most that one turn moves to the guest.
MIN_BURST, MAX_BURST = 4096, 262144


class Stream(Connection):
    """`fd` is owned; -1 when closed.

    `client` is the socket on which somebody waits for OK. Afterwards it becomes `fd` itself (CONNECT:
    there is no other), is closed (passfd), or is the control connection of a stream that has one (`verbs`
    is set then).
    """

    __slots__ = (
        "burst",
        "client",
        "deadline",
        "fd",
        "hung_up",
        "is_socket",
        "last_edge",
        "pollable",
        "verbs",
        "waits_for_credit",
        "writing_ended",
    )

    def __init__(
        self, host_port: int, guest_port: int, fd: int, *, source: bool, sink: bool, is_socket: bool
    ) -> None:
        super().__init__(host_port, guest_port, source=source, sink=sink)
        self.fd, self.is_socket = fd, is_socket
        self.client: _socket.socket | None = None
        self.verbs: Verbs | None = None
        self.deadline = 0.0
        self.pollable = True
        # the other end is gone: no edge will tell of what is left, it must be read to its end
        self.last_edge = False
        # a socket whose peer neither sends nor receives any more
        self.hung_up = False
        self.waits_for_credit = False
        self.writing_ended = False
        self.burst = MIN_BURST

    def end_writing(self) -> None:
        """Half-close a socket, once: the host has every byte of the guest. Does nothing on other
        descriptors."""
        if self.is_socket and not self.writing_ended:
            self.writing_ended = True
            borrowed = _socket.socket(fileno=self.fd)
            try:
                borrowed.shutdown(_socket.SHUT_WR)
            except OSError:
                pass  # the peer is gone already
            finally:
                borrowed.detach()

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def directions(fd: int) -> tuple[bool, bool, bool]:
    """(can be read, can be written, is a socket) of a passed descriptor.

    A FIFO opened for both is a standard input: its opener keeps a writer of its own so that it never
    shows EOF. Reading back what we write there would be a loop. Raises `OSError`.
    """
    access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    mode = os.fstat(fd).st_mode
    source = access in (os.O_RDONLY, os.O_RDWR)
    sink = access == os.O_WRONLY or (access == os.O_RDWR and not stat.S_ISFIFO(mode))
    return source, sink, stat.S_ISSOCK(mode)


def enlarge(fd: int) -> None:
    """Give a pipe `PIPE_SIZE` bytes, where that is allowed. Does nothing to what is no pipe."""
    try:
        if fcntl.fcntl(fd, F_GETPIPE_SZ) < PIPE_SIZE:
            fcntl.fcntl(fd, F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass  # no pipe, or beyond the user's limit: slower, not wrong
