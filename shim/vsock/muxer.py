"""Which connections there are, and whose turn it is to put something into the guest's receive buffers.

Two queues wait for receive buffers. `control` holds what is owed besides data: connections (each at most
once, it says itself what it owes, so that any number of credit updates melts into one) and resets for
pairs of ports that nobody has. It goes first: a reset or a credit update must not wait behind bulk data.
`ready` holds the connections whose host descriptor may have data, each at most once, served in turn.

A guest that floods us with packets but takes no replies would make `control` grow with resets. Its packets
are left in its own ring while `is_choked`.

A guest can make us hold at most `MAX_CONNECTIONS` times `BUF_ALLOC`, 256 MiB, and that only with as many host
ends that nobody reads.

Host ports are given out from 2^30 to 2^31-1, never one in use (Dragonball's numbers: a guest can tell
them from the ports it chose itself).
"""

from __future__ import annotations

from . import header
from .connection import BUF_ALLOC, Connection
from .header import MASK32, PACKED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque

    from .stream import Stream
else:
    # the same class; the package around it costs three milliseconds of a start
    from _collections import deque

FIRST_PORT = 1 << 30
MAX_CONNECTIONS = 1023
CHOKE_AT, RELIEVED_AT = 256, 64


class TooManyConnections(Exception):
    """The limit of connections of one VM is reached."""


class Muxer:
    """The connections of one guest. `connections` is keyed by `Connection.key`, the ports as the guest
    sends them; `draining` are those that the guest has given up before the host had read all."""

    __slots__ = ("_cids", "_last_port", "connections", "control", "draining", "ready")

    def __init__(self, guest_cid: int) -> None:
        self.connections: dict[int, Stream] = {}
        self.draining: set[Stream] = set()
        self.control: deque[Stream | bytes] = deque()
        self.ready: deque[Stream] = deque()
        self._cids = header.cids(header.HOST_CID, guest_cid)
        self._last_port = FIRST_PORT - 1

    def new_port(self, guest_port: int) -> int:
        """A host port for a new connection to `guest_port`. Raises `TooManyConnections`."""
        self._check_room()
        used = {connection.host_port for connection in self.connections.values()}
        port = self._last_port
        while True:
            port = (port + 1) & 0x7FFFFFFF | FIRST_PORT
            if port not in used:
                self._last_port = port
                return port

    def add(self, connection: Stream) -> None:
        """Raises `TooManyConnections`; the pair of ports must not be in use."""
        self._check_room()
        self.connections[connection.key] = connection

    def _check_room(self) -> None:
        if len(self.connections) + len(self.draining) >= MAX_CONNECTIONS:
            raise TooManyConnections

    def forget(self, connection: Stream) -> None:
        """The guest shall know this connection no more. Its place in the queues goes by itself."""
        if self.connections.get(connection.key) is connection:
            del self.connections[connection.key]

    def forget_all(self) -> list[Stream]:
        """Drop every connection and whatever waits for the guest, which has been restarted or is gone."""
        dropped = list(self.connections.values())
        self.connections.clear()
        for item in self.control:
            if not isinstance(item, bytes):
                item.in_control = False
        for stream in self.ready:
            stream.in_ready = False
        self.control.clear()
        self.ready.clear()
        return dropped

    # ---- control ---------------------------------------------------------------------------------

    def owe(self, connection: Stream, what: int = 0) -> None:
        """`connection` owes the guest `what` (a bit), or what it has marked itself."""
        connection.owed |= what
        if not connection.in_control:
            connection.in_control = True
            self.control.append(connection)

    def reset(self, key: int) -> None:
        """Answer the pair of ports `key` (as the guest sends it) with a reset."""
        back = key >> 32 | (key & MASK32) << 32
        self.control.append(PACKED.pack(self._cids, back, 0, header.kind(header.OP_RST), 0, 0, 0))

    def next_control(self) -> bytes | None:
        """The next control packet for the guest, 44 bytes; None when nothing is owed."""
        control = self.control
        while control:
            item = control.popleft()
            if isinstance(item, bytes):
                return item
            item.in_control = False
            packet = item.next_packet()
            if packet is None:
                continue
            if item.owed:
                self.owe(item)
            op, flags = packet
            return self.encode(item, 0, header.kind(op), flags)
        return None

    def encode(self, connection: Connection, length: int, kind: int, flags: int = 0) -> bytes:
        """A header for the guest; it carries our credit, so the guest has been told then."""
        connection.rx_told = connection.rx
        return PACKED.pack(
            self._cids, connection.back_ports, length, kind, flags, BUF_ALLOC, connection.rx & MASK32
        )

    def is_choked(self) -> bool:
        """The guest takes no replies: take no more of its packets."""
        return len(self.control) > CHOKE_AT

    def is_relieved(self) -> bool:
        """Enough replies went out to go on after `is_choked`."""
        return len(self.control) < RELIEVED_AT

    # ---- data ------------------------------------------------------------------------------------

    def wake(self, connection: Stream) -> None:
        """The host's descriptor may have data for the guest, and there may be credit."""
        if not connection.in_ready:
            connection.in_ready = True
            self.ready.append(connection)
