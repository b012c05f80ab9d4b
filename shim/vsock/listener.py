"""The device's Unix socket: clients that ask for a connection to a guest port, or pass a descriptor for
one."""

from __future__ import annotations

import _socket
import os
from select import EPOLLET, EPOLLHUP, EPOLLIN, EPOLLRDHUP
from struct import unpack
from time import monotonic

from .handshake import MAX_LINE, PASSFD, STREAM, BadRequest, Verbs, parse_passfd, parse_request
from .hub import Hub
from .muxer import TooManyConnections
from .poller import Poller
from .stream import Stream, directions, enlarge

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..log import Log

# how long a client may take to say what it wants, and how many may be doing so
HANDSHAKE_TIMEOUT_S = 10.0
MAX_CALLERS = 128
# more than this in one message is cut off by the kernel
MAX_FDS = 8


def receive_fds(sock: _socket.socket, size: int) -> tuple[bytes, list[int], bool]:
    """Up to `size` bytes, the descriptors that came with them, and whether more of those were lost.

    They are the caller's to close. Raises `BlockingIOError` and other `OSError`.
    """
    data, ancillary, flags, _ = sock.recvmsg(size, _socket.CMSG_SPACE(4 * MAX_FDS), _socket.MSG_CMSG_CLOEXEC)
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            count = len(payload) // 4
            fds += unpack(f"={count}i", payload[: 4 * count])
    return data, fds, bool(flags & _socket.MSG_CTRUNC)


class _Caller:
    """A client in the middle of its handshake. `text` and `fds` are of the second message of a passfd."""

    __slots__ = ("deadline", "fds", "passing", "socket", "text")

    def __init__(self, sock: _socket.socket, deadline: float) -> None:
        self.socket, self.deadline = sock, deadline
        self.passing = False
        self.text = b""
        self.fds: list[int] = []

    def close_fds(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Listener:
    """Owns the listening socket `fd`."""

    def __init__(self, poller: Poller, hub: Hub, fd: int, log: Log) -> None:
        self._poller, self._hub, self._log = poller, hub, log
        self._socket = _socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._resting = True
        self.callers: set[_Caller] = set()
        self._listen()

    def _listen(self) -> None:
        self._resting = False
        self._poller.add(self._socket.fileno(), self._on_accept, EPOLLIN)

    def has_deadlines(self) -> bool:
        return bool(self.callers) or self._resting

    def sweep(self, now: float) -> None:
        """Drop clients that took too long; accept again after an error."""
        for caller in [caller for caller in self.callers if caller.deadline <= now]:
            self._refuse(caller, "handshake timed out")
        if self._resting:
            self._listen()

    def close(self) -> None:
        """Take no more clients and refuse those who have not been connected."""
        self._poller.remove(self._socket.fileno())
        self._socket.close()
        self._resting = False
        for caller in list(self.callers):
            self._refuse(caller, "the device ends")

    def _on_accept(self, _events: int) -> None:
        try:
            fd, _ = self._socket._accept()  # type: ignore[attr-defined]
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            # out of descriptors, most likely: trying again at once would spin
            self._log.error("cannot accept", error=error)
            self._poller.remove(self._socket.fileno())
            self._resting = True
            return
        sock = _socket.socket(fileno=fd)
        if len(self.callers) >= MAX_CALLERS:
            sock.close()
            return
        sock.setblocking(False)
        caller = _Caller(sock, monotonic() + HANDSHAKE_TIMEOUT_S)
        self.callers.add(caller)
        self._poller.add(fd, lambda events: self._on_caller(caller, events), EPOLLIN | EPOLLRDHUP | EPOLLET)

    def _on_caller(self, caller: _Caller, events: int) -> None:
        try:
            while self._step(caller):
                pass
            if caller in self.callers and events & (EPOLLHUP | EPOLLRDHUP):
                raise BadRequest("hung up in the middle of a request")
        except BlockingIOError:
            if events & (EPOLLHUP | EPOLLRDHUP):
                self._refuse(caller, "hung up")
        except (OSError, BadRequest, TooManyConnections) as error:
            self._refuse(caller, str(error) or type(error).__name__)

    def _step(self, caller: _Caller) -> bool:
        """Take what has come. True if there may be more to do; raises what ends the handshake."""
        sock = caller.socket
        if caller.passing:
            data, fds, cut = receive_fds(sock, MAX_LINE + 1)
            caller.text += data
            caller.fds += fds
            if not data or cut or len(caller.text) > MAX_LINE or len(caller.fds) > 1:
                raise BadRequest("not one descriptor with a port")
            if not caller.fds:
                return True
            self._pass(caller)
            return False
        # what follows the line must stay in the socket: look first, then take exactly the line
        peeked = sock.recv(MAX_LINE, _socket.MSG_PEEK)
        if not peeked:
            raise BadRequest("hung up")
        request = parse_request(peeked)
        if request is None:
            return False
        port, length = request
        _, caller.fds, cut = receive_fds(sock, length)
        if port == PASSFD:
            if cut or len(caller.fds) > 1:
                raise BadRequest("not one descriptor")
            caller.passing = True
            return True
        caller.close_fds()
        host_port = self._hub.muxer.new_port(port)
        self._ask(caller, Stream(host_port, port, -1, source=True, sink=True, is_socket=True))
        return False

    def _pass(self, caller: _Caller) -> None:
        """The descriptor and the port are there."""
        port, mode = parse_passfd(caller.text)
        source, sink, is_socket = directions(caller.fds[0])
        host_port = self._hub.muxer.new_port(port)
        fd = caller.fds.pop()
        if not is_socket:
            enlarge(fd)
        stream = Stream(host_port, port, fd, source=source, sink=sink, is_socket=is_socket)
        if mode == STREAM:
            stream.verbs = Verbs()
        self._ask(caller, stream)

    def _ask(self, caller: _Caller, stream: Stream) -> None:
        """Hand the client over to the hub, which answers it when the guest has."""
        self.callers.discard(caller)
        self._poller.remove(caller.socket.fileno())
        stream.client = caller.socket
        self._hub.request(stream)

        def on_client(events: int) -> None:
            if events & EPOLLHUP:
                self._hub.abandon(stream)

        self._poller.add(caller.socket.fileno(), on_client)

    def _refuse(self, caller: _Caller, why: str) -> None:
        self._log.debug("request refused", why=why)
        self.callers.discard(caller)
        self._poller.remove(caller.socket.fileno())
        caller.socket.close()
        caller.close_fds()
