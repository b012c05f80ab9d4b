"""Brings connections and host descriptors together: begin, half-close, flush, end.

What ends how:

    guest refuses or does not answer   client's socket closed without a line
    guest closed, all delivered        RST to the guest, descriptor closed, DRAINED
    guest reset, broke a rule, is gone bytes already taken still go to the host; then as above
    host's reader is gone              RST to the guest (its writer sees EPIPE), descriptor closed, DRAINED
"""

from __future__ import annotations

import _socket
import errno
import os
from select import EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP
from time import monotonic

from . import handshake, header
from .connection import (
    CLOSED,
    DRAINING,
    OPEN,
    OWES_CREDIT,
    OWES_REQUEST,
    OWES_RESPONSE,
    REQUESTED,
    ConnectionFault,
)
from .muxer import Muxer, TooManyConnections
from .poller import Poller
from .stream import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ..log import Log

REQUEST_TIMEOUT_S = 10.0


class Hub:
    """All streams of one device. `path` is the host socket's, from which guest connections get theirs."""

    __slots__ = ("_log", "_path", "_poller", "muxer", "requested")

    def __init__(self, poller: Poller, muxer: Muxer, path: str, log: Log) -> None:
        self._poller, self.muxer, self._path, self._log = poller, muxer, path, log
        # waiting for the guest's answer
        self.requested: set[Stream] = set()

    # ---- begin -----------------------------------------------------------------------------------

    def request(self, stream: Stream) -> None:
        """Ask the guest for a new connection; `stream.client` gets the answer. Raises
        `TooManyConnections`."""
        self.muxer.add(stream)
        stream.deadline = monotonic() + REQUEST_TIMEOUT_S
        self.requested.add(stream)
        self.muxer.owe(stream, OWES_REQUEST)

    def sweep(self, now: float) -> None:
        """Give up requests that the guest did not answer in time."""
        for stream in [stream for stream in self.requested if stream.deadline <= now]:
            self.abandon(stream)

    def abandon(self, stream: Stream) -> None:
        """Nobody waits for the guest's answer any more."""
        if not stream.owed & OWES_REQUEST:
            self.muxer.reset(stream.key)
        self.detach(stream)

    def _connect_to_host(self, key: int, alloc: int, fwd: int) -> None:
        """The guest asks for a host port: that is a Unix socket beside ours."""
        guest_port, host_port = key & header.MASK32, key >> 32
        host = _socket.socket(
            _socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        )
        try:
            host.connect(f"{self._path}_{host_port}")
            stream = Stream(host_port, guest_port, host.fileno(), source=True, sink=True, is_socket=True)
            self.muxer.add(stream)
        except (OSError, TooManyConnections):
            host.close()
            self.muxer.reset(key)
            return
        host.detach()
        stream.on_credit(alloc, fwd)
        stream.open()
        self.muxer.owe(stream, OWES_RESPONSE)
        self._watch(stream)

    def _open(self, stream: Stream) -> None:
        """The guest accepted: tell the client, and let bytes flow."""
        self.requested.discard(stream)
        client = stream.client
        if client is not None:
            self._poller.remove(client.fileno())
            try:
                client.send(handshake.ok(stream.host_port))
            except OSError as error:
                self.reset(stream, f"nobody takes the answer: {error}")
                return
            if stream.verbs is not None:
                self._poller.add(client.fileno(), lambda _: self._on_verbs(stream))
            else:
                stream.client = None
                if stream.fd < 0:
                    stream.fd = client.detach()
                client.close()
        self._watch(stream)

    def _watch(self, stream: Stream) -> None:
        events = EPOLLET
        if stream.source:
            events |= EPOLLIN | EPOLLRDHUP
        if stream.sink:
            events |= EPOLLOUT
        try:
            os.set_blocking(stream.fd, False)
            self._poller.add(stream.fd, lambda events: self._on_host(stream, events), events)
        except PermissionError:
            # a regular file or /dev/null: always ready
            stream.pollable = False
            if stream.source:
                self.muxer.wake(stream)
            return
        except OSError as error:
            self.host_failed(stream, error)
            return
        if stream.eof_asked:
            self.muxer.wake(stream)

    # ---- what the host does ----------------------------------------------------------------------

    def _on_host(self, stream: Stream, events: int) -> None:
        if events & (EPOLLIN | EPOLLHUP | EPOLLRDHUP):
            if events & (EPOLLHUP | EPOLLRDHUP):
                stream.last_edge = True
                if events & EPOLLHUP and stream.is_socket:
                    stream.hung_up = True
                    if stream.host_shut and stream.state == OPEN:
                        self.host_eof(stream)  # it had only half-closed so far
            if not stream.waits_for_credit and stream.wants_host_data():
                self.muxer.wake(stream)
        if events & (EPOLLOUT | EPOLLERR) and stream.sink:
            if stream.pending:
                self.flush(stream)
            elif events & EPOLLERR and not stream.source:
                self.host_failed(stream, OSError(errno.EPIPE, "the reader is gone"))

    def _on_verbs(self, stream: Stream) -> None:
        """A stream's control connection has something to say, or is gone (which changes nothing)."""
        client, verbs = stream.client, stream.verbs
        if client is None or verbs is None:
            return
        while True:
            try:
                data = client.recv(256)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            try:
                for verb in verbs.feed(data):
                    if verb == b"eof":
                        self._ask_eof(stream)
                    elif verb == b"stat":
                        client.send(handshake.stat(stream.rx, stream.tx, stream.stalls))
                    elif verb == b"close" and stream.state == OPEN:
                        self.reset(stream, "given up by the host")
                        if stream.client is None:
                            return
            except (OSError, handshake.BadRequest) as error:
                self._log.debug("control connection dropped", port=stream.host_port, error=error)
                data = b""
            if not data:
                self._drop_client(stream)
                return

    def _ask_eof(self, stream: Stream) -> None:
        """Nobody will write to the host's descriptor again: when it is empty, that was all."""
        stream.eof_asked = True
        if not stream.waits_for_credit:
            self.muxer.wake(stream)

    def _drop_client(self, stream: Stream) -> None:
        client, stream.client = stream.client, None
        if client is not None:
            self._poller.remove(client.fileno())
            client.close()

    def host_eof(self, stream: Stream) -> None:
        """Everything the host had to send is with the guest."""
        stream.on_host_eof(both=stream.hung_up)
        self.muxer.owe(stream)

    def host_failed(self, stream: Stream, error: OSError) -> None:
        """The host's descriptor is broken: no byte can be delivered any more."""
        self._log.debug("host descriptor failed", port=stream.host_port, error=error)
        stream.pending.clear()
        if stream.state == OPEN:
            self.muxer.reset(stream.key)
        self.muxer.forget(stream)
        self._end(stream)

    def flush(self, stream: Stream) -> None:
        """Write what waits for the host, until its descriptor is full again."""
        pending = stream.pending
        try:
            while pending:
                stream.on_flushed(os.write(stream.fd, pending))
        except BlockingIOError:
            stream.stalls += 1
        except OSError as error:
            self.host_failed(stream, error)
            return
        if stream.owes_credit():
            self.muxer.owe(stream, OWES_CREDIT)
        if not pending:
            self.settle(stream)

    # ---- what the guest does ---------------------------------------------------------------------

    def on_packet(self, key: int, op: int, *, flags: int, alloc: int, fwd: int) -> None:
        """Any packet but data for an open connection."""
        stream = self.muxer.connections.get(key)
        if stream is None:
            if op == header.OP_REQUEST:
                self._connect_to_host(key, alloc, fwd)
            elif op != header.OP_RST:
                self.muxer.reset(key)
            return
        try:
            if op == header.OP_RST:
                self.detach(stream)
                return
            if not stream.on_credit(alloc, fwd):
                raise ConnectionFault("credit for bytes that were never sent")
            if op == header.OP_RESPONSE:
                stream.on_response()
                self._open(stream)
            elif op == header.OP_SHUTDOWN:
                stream.on_shutdown(flags)
                self.settle(stream)
            elif op == header.OP_CREDIT_REQUEST and stream.state == OPEN:
                self.muxer.owe(stream, OWES_CREDIT)
            elif op != header.OP_CREDIT_UPDATE or stream.state != OPEN:
                raise ConnectionFault(f"unexpected op {op}")
        except ConnectionFault as error:
            self.reset(stream, str(error))
            return
        if stream.waits_for_credit:
            self.credit_came(stream)

    def credit_came(self, stream: Stream) -> None:
        """The guest may have room again."""
        if stream.credit() > 0:
            stream.waits_for_credit = False
            self.muxer.wake(stream)

    def settle(self, stream: Stream) -> None:
        """Do what follows when the guest is done in some direction and the host has all its bytes."""
        if stream.is_over():
            if stream.state == OPEN:
                self.muxer.reset(stream.key)
                self.muxer.forget(stream)
            self._end(stream)
        elif stream.host_may_finish_writing():
            stream.end_writing()

    # ---- end -------------------------------------------------------------------------------------

    def reset(self, stream: Stream, why: str) -> None:
        """The guest broke a rule."""
        self._log.debug("connection reset", port=stream.host_port, guest_port=stream.guest_port, why=why)
        self.muxer.reset(stream.key)
        self.detach(stream)

    def detach(self, stream: Stream) -> None:
        """The guest knows the connection no more. What it sent still goes to the host."""
        self.muxer.forget(stream)
        self.requested.discard(stream)
        if stream.state == REQUESTED:
            stream.state = CLOSED
            self._drop_client(stream)
            stream.close()
        elif stream.pending:
            stream.state = DRAINING
            self.muxer.draining.add(stream)
        else:
            self._end(stream)

    def detach_all(self) -> None:
        """The guest was restarted or is gone."""
        for stream in self.muxer.forget_all():
            self.detach(stream)

    def _end(self, stream: Stream) -> None:
        """Close the host's descriptor, then tell the control connection."""
        stream.state = CLOSED
        self.muxer.draining.discard(stream)
        if stream.fd >= 0:
            self._poller.remove(stream.fd)
            stream.close()
        if stream.client is not None:
            try:
                stream.client.send(handshake.drained(stream.rx, stream.tx, stream.stalls))
            except OSError as error:
                self._log.debug("nobody hears of the end", port=stream.host_port, error=error)
            self._drop_client(stream)
