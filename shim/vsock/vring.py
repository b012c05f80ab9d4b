"""A split virtqueue, seen from the device.

    descriptors  16 bytes each:  | address u64 | length u32 | flags u16 | next u16 |
    available    | flags u16 | idx u16 | ring: u16 × size | used_event u16 |        the driver writes
    used         | flags u16 | idx u16 | ring: (id u32, len u32) × size | avail_event u16 |   the device
    writes

The packet loops read descriptors themselves where they have the shape that real drivers give them;
whatever looks different goes to `Ring.segments`, which takes every shape the standard allows and refuses
the rest. A driver that breaks the rules of the ring itself gets `RingFault`: where a ring lies, nothing
behind it can be trusted, so the device stops, as QEMU's own devices do ("virtio_error").

Indices are stored with one 16-bit store each (`memoryview.cast("H")`). The order of stores is kept by
x86; where a store must be seen before a later load (used index, then the driver's event index)
`barrier()` stands between.

Source: VIRTIO 1.2, 2.7 "Split Virtqueues"; QEMU hw/virtio/virtio.c.
"""

from __future__ import annotations

import _thread
from struct import Struct

from .memory import Memory, Region

DESCRIPTOR = Struct("<QIHH")
# the two descriptors of an indirect table, read at once
PAIR = Struct("<QIHHQIHH")
NEXT, WRITE, INDIRECT = 1, 2, 4
NO_INTERRUPT = 1

_lock = _thread.allocate_lock()


def barrier() -> None:
    """A full memory barrier: taking a free lock is one locked compare-and-exchange."""
    _lock.acquire()
    _lock.release()


class RingFault(Exception):
    """The driver broke the rules of the ring."""


class Ring:
    """One queue. `next_avail` and `used_index` are ours, modulo 2^16; the views are None until `map`."""

    __slots__ = (
        "avail",
        "call",
        "elements",
        "enabled",
        "event_at",
        "index",
        "kick",
        "mask",
        "next_avail",
        "region",
        "resume",
        "running",
        "signalled",
        "size",
        "table",
        "used",
        "used_index",
        "where",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.kick = self.call = -1
        self.size = self.mask = self.event_at = 0
        self.enabled = False
        # (next_avail, used_index) where it was stopped: a paused machine goes on from there
        self.resume: tuple[int, int] | None = None
        self.stop()

    def stop(self) -> None:
        """Forget everything the next driver will set anew."""
        self.where: tuple[int, int, int] | None = None
        self.next_avail = self.used_index = self.signalled = 0
        self.running = False
        self.unmap()

    def unmap(self) -> None:
        """Let go of guest memory."""
        # where the driver's buffers were last seen, for the fast paths of the packet loops
        self.region: Region | None = None
        empty = memoryview(b"")
        self.table = empty
        self.avail = self.used = empty.cast("H")
        self.elements = empty.cast("I")

    def is_mapped(self) -> bool:
        return len(self.table) > 0

    def map(self, memory: Memory) -> None:
        """Find the three parts at `where`, the front end's addresses. Raises `memory.BadAddress` or
        `RingFault`."""
        self.unmap()
        if self.where is None or not self.size:
            raise RingFault("the ring has no address or no size")
        table, used, avail = self.where
        if table % 16 or avail % 2 or used % 4:
            raise RingFault("the ring is not aligned")
        size = self.size
        table_view = memory.host(table, 16 * size)
        avail_view = memory.host(avail, 6 + 2 * size)
        used_view = memory.host(used, 6 + 8 * size)
        self.table, self.avail, self.used = table_view, avail_view.cast("H"), used_view.cast("H")
        self.elements = used_view[4 : 4 + 8 * size].cast("I")
        self.mask, self.event_at = size - 1, 2 + 4 * size
        self.region = memory.largest

    def start(self) -> bool:
        """Begin where the driver is. False if that is not where the ring was stopped: then it is a new
        driver, which knows nothing of earlier connections."""
        self.running = True
        self.used_index = self.signalled = self.used[1]
        resumed = self.resume is None or self.resume == (self.next_avail, self.used_index)
        self.resume = None
        return resumed

    def end(self) -> int:
        """The available index now. Raises `RingFault` if it claims more than the ring holds."""
        end = self.avail[1]
        if (end - self.next_avail) & 0xFFFF > self.size:
            raise RingFault(f"available index jumped from {self.next_avail} to {end}")
        return end

    def should_signal(self, event_idx: bool) -> bool:
        """Does the driver want an interrupt for what was used since the last time this was asked?"""
        old, new = self.signalled, self.used_index
        self.signalled = new
        barrier()
        if event_idx:
            return (new - self.avail[2 + self.size] - 1) & 0xFFFF < (new - old) & 0xFFFF
        return not self.avail[0] & NO_INTERRUPT

    def segments(self, head: int, memory: Memory, *, writable: bool) -> list[memoryview]:
        """The guest memory of the chain at `head`, in order. All of it is `writable` for us, or none.

        Raises `RingFault` for loops, nested or malformed indirect tables, empty or wrongly directed
        descriptors, and `BadAddress`. Each descriptor is read once, so that what was checked is what is used.
        """
        table, size = self.table, self.size
        found: list[memoryview] = []
        position, indirect = head, False
        while True:
            # Whoever comes back to a descriptor has a chain longer than the queue, which none may be, in an indirect
            # table either: 32768 pieces of it in each packet would keep us from everything else.
            if position >= size or len(found) >= self.size:
                raise RingFault("descriptor index out of range, or a chain that is too long or in a loop")
            address, length, flags, following = DESCRIPTOR.unpack_from(table, 16 * position)
            if flags & INDIRECT:
                if indirect or flags & NEXT or not length or length % 16:
                    raise RingFault(f"bad indirect table of {length} bytes")
                table, size = memory.guest(address, length), length // 16
                position, indirect = 0, True
                continue
            if not length or bool(flags & WRITE) != writable:
                raise RingFault(f"descriptor of {length} bytes with flags {flags:#x}")
            found.append(memory.guest(address, length))
            if not flags & NEXT:
                return found
            position = following


def gather(segments: list[memoryview], limit: int) -> bytes:
    """The first `limit` bytes of a chain, copied."""
    parts = []
    for segment in segments:
        parts.append(segment[:limit])
        limit -= len(parts[-1])
        if limit <= 0:
            break
    return b"".join(parts)
