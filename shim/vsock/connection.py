"""One vsock connection, seen from the host: credit both ways, half-closes, what is still owed to the guest.

No IO happens here: the owner of the host's descriptor tells what it read and wrote, the packet loops tell
what the guest said, and `next_packet` gives what must go to the guest. Bytes for the host that did not
fit yet wait in `pending`; bytes for the guest never wait here, they go from the descriptor straight into
guest memory.

               guest's RESPONSE                      is_over() and nothing pending
    REQUESTED ------------------> OPEN ------------------------------------------> CLOSED
        |                          | RST either way, lost guest                       ^
        |                          '----> DRAINING: the guest knows it no more, ------'
        '-- RST, timeout --> CLOSED       `pending` still goes to the host

A guest that breaks the rules is told so by a False or a `ConnectionFault`, upon which its owner resets the
connection. Nothing it says can raise anything else, or make `pending` grow beyond `BUF_ALLOC`.

Source: VIRTIO 1.2, 5.10.6; Linux net/vmw_vsock/virtio_transport_common.c for what real peers do.
"""

from __future__ import annotations

from . import header
from .header import MASK32, SHUT_BOTH, SHUT_RCV, SHUT_SEND

REQUESTED, OPEN, DRAINING, CLOSED = range(4)

# What we let the guest have under way to the host. Linux stops at its own 256 KiB in any case.
BUF_ALLOC = 256 * 1024

# What is owed to the guest, most urgent first.
OWES_REQUEST = 1
OWES_RESPONSE = 2
OWES_SHUTDOWN = 4
OWES_CREDIT = 8

_OWED = (
    (OWES_REQUEST, header.OP_REQUEST),
    (OWES_RESPONSE, header.OP_RESPONSE),
    (OWES_SHUTDOWN, header.OP_SHUTDOWN),
    (OWES_CREDIT, header.OP_CREDIT_UPDATE),
)


class ConnectionFault(Exception):
    """The guest did something that this connection's state does not allow: it is to be reset."""


class Connection:
    """`source` says that the host's end can be read from, `sink` that it can be written to; both never
    change.

    `rx` counts bytes taken from the guest and written to the host, `tx` bytes from the host put into guest
    memory. Both count on without limit; the wire sees them modulo 2^32.
    """

    __slots__ = (
        "back_ports",
        "eof_asked",
        "guest_port",
        "guest_shut",
        "host_port",
        "host_shut",
        "in_control",
        "in_ready",
        "key",
        "owed",
        "peer_alloc",
        "peer_fwd",
        "pending",
        "rx",
        "rx_told",
        "sink",
        "source",
        "stalls",
        "state",
        "takes_data",
        "threshold",
        "tx",
    )

    def __init__(self, host_port: int, guest_port: int, *, source: bool, sink: bool) -> None:
        self.host_port, self.guest_port = host_port, guest_port
        self.key = header.ports(guest_port, host_port)
        self.back_ports = header.ports(host_port, guest_port)
        self.source, self.sink = source, sink
        self.state = REQUESTED
        # may the guest send payload now?
        self.takes_data = False
        self.rx = self.rx_told = self.tx = self.stalls = 0
        # not a size: whatever the guest says first is news
        self.peer_alloc, self.peer_fwd = -1, 0
        self.threshold = BUF_ALLOC // 2
        self.pending = bytearray()
        self.guest_shut = self.host_shut = 0
        self.eof_asked = False
        self.owed = 0
        # the muxer's marks: already in that queue
        self.in_control = self.in_ready = False

    # ---- credit ----------------------------------------------------------------------------------

    def on_credit(self, alloc: int, fwd: int) -> bool:
        """Take the credit fields of a packet from the guest. False if it claims bytes it was never sent.

        Two CPUs of a guest may queue their packets in another order than they filled them in, so a count that
        went back is old news and not a lie.
        """
        if alloc != self.peer_alloc:
            self.peer_alloc = alloc
            # Linux caps what it has under way to its own buffer size too: an update that waits for more than
            # half of that would never be sent, and both sides would wait forever
            self.threshold = max(1, min(BUF_ALLOC, alloc) // 2)
        if fwd != self.peer_fwd:
            in_flight = (self.tx - self.peer_fwd) & MASK32
            advance = (fwd - self.peer_fwd) & MASK32
            if advance <= in_flight:
                self.peer_fwd = fwd
            elif advance <= 0x7FFFFFFF:
                return False
        return True

    def credit(self) -> int:
        """Bytes that may go to the guest now; not above 0 when it must read first."""
        return self.peer_alloc - ((self.tx - self.peer_fwd) & MASK32)

    def owes_credit(self) -> bool:
        """True when the guest should be told how far the host has read."""
        return self.rx - self.rx_told >= self.threshold

    # ---- guest -> host ---------------------------------------------------------------------------

    def hold(self, data: bytes | memoryview) -> bool:
        """Keep bytes that the host's descriptor did not take. False if the guest overran its credit."""
        if len(self.pending) + len(data) > BUF_ALLOC:
            return False
        self.pending += data
        return True

    def on_flushed(self, count: int) -> None:
        """`count` bytes from the front of `pending` are with the host."""
        del self.pending[:count]
        self.rx += count

    def open(self) -> None:
        """Both sides want the connection."""
        self.state = OPEN
        self.takes_data = self.sink

    def on_response(self) -> None:
        """The guest accepted our request."""
        if self.state != REQUESTED or self.owed & OWES_REQUEST:
            raise ConnectionFault("response without a request")
        self.open()

    def on_shutdown(self, flags: int) -> None:
        """The guest will not receive (1) or not send (2) any more; flags add up."""
        if self.state != OPEN:
            raise ConnectionFault("shutdown of a connection that is not open")
        self.guest_shut |= flags & SHUT_BOTH
        if self.guest_shut & SHUT_SEND:
            self.takes_data = False

    def host_may_finish_writing(self) -> bool:
        """The guest has sent its last byte, and the host has it."""
        return bool(self.guest_shut & SHUT_SEND) and not self.pending

    def is_over(self) -> bool:
        """Nothing can flow any more: in each direction that existed the guest is done, and all is
        delivered."""
        if self.state == DRAINING:
            return not self.pending
        if self.state != OPEN:
            return False
        sent = self.guest_shut & SHUT_SEND or not self.sink
        received = self.guest_shut & SHUT_RCV or not self.source
        return bool(sent and received) and not self.pending

    # ---- host -> guest ---------------------------------------------------------------------------

    def wants_host_data(self) -> bool:
        """Should the host's descriptor be read?"""
        return (
            self.state == OPEN
            and self.source
            and not self.guest_shut & SHUT_RCV
            and not self.host_shut & SHUT_SEND
        )

    def on_host_eof(self, *, both: bool) -> None:
        """The host has nothing more to send, and with `both` does not read any more either."""
        flags = SHUT_BOTH if both else SHUT_SEND
        if self.host_shut | flags != self.host_shut:
            self.host_shut |= flags
            self.owed |= OWES_SHUTDOWN

    # ---- control packets -------------------------------------------------------------------------

    def next_packet(self) -> tuple[int, int] | None:
        """The op and flags of the next packet owed to the guest; None when there is none."""
        if self.state > OPEN:
            self.owed = 0
            return None
        for bit, op in _OWED:
            if self.owed & bit:
                self.owed &= ~bit
                return op, self.host_shut if op == header.OP_SHUTDOWN else 0
        return None
