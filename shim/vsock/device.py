"""The virtio side: rings in guest RAM, set up by the front end, and what becomes of connections meanwhile.

A stop of the rings (GET_VRING_BASE) means a paused machine or a reset one, and does not say which.
Connections stay until the rings start again: from where they stopped, the guest was only paused; from
elsewhere, it is a new driver that knows no connection.

When a ring breaks the rules the device stops: it touches the rings no more until the driver sets up new
ones, and the connections end as if the guest were gone. The process lives on, since bytes may still be on
their way to the host.
"""

from __future__ import annotations

import os

from .hub import Hub
from .memory import BadAddress, Memory, map_region
from .poller import Poller
from .receive import receive
from .transmit import transmit
from .vhost_user import F_EVENT_IDX, F_PROTOCOL_FEATURES, QUEUES, Refused
from .vring import Ring, RingFault

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque

    from ..log import Log
else:
    from _collections import deque

RX, TX = 0, 1


class Device:
    """A `vhost_user.Target`. The loop calls `serve` once per turn.

    `chains` holds receive buffers taken from the rx ring but not filled yet: (head, header, payload, its
    length).
    """

    def __init__(self, poller: Poller, hub: Hub, guest_cid: int, log: Log) -> None:
        self._poller, self.hub, self.guest_cid, self.log = poller, hub, guest_cid, log
        self.memory = Memory([])
        self.rings = [Ring(index) for index in range(QUEUES)]
        self.rx, self.tx = self.rings[RX], self.rings[TX]
        self.chains: deque[tuple[int, memoryview, memoryview, int]] = deque()
        self.event_idx = False
        self.broken = False
        # a turn ended before the ring was empty: go on in the next one
        self.more_to_take = self.more_to_give = False
        # the guest takes no replies, so its packets wait
        self.choked = False
        self.malformed = 0

    # ---- turns -----------------------------------------------------------------------------------

    def has_work(self) -> bool:
        """Should the loop come back at once?"""
        return self.more_to_take or self.more_to_give

    def serve(self) -> None:
        """One turn besides kicks: give the guest what waits for it, take what was left behind."""
        muxer = self.hub.muxer
        if muxer.control or muxer.ready or self.more_to_give:
            self.give()
        if self.more_to_take or (self.choked and muxer.is_relieved()):
            self.take()
            if muxer.control or muxer.ready:
                self.give()

    def take(self, _events: int = 0) -> None:
        """Packets from the guest."""
        self.more_to_take = False
        if self.tx.running and not self.broken:
            try:
                transmit(self)
            except (RingFault, BadAddress) as error:
                self._break(error)

    def give(self) -> None:
        """Packets for the guest."""
        self.more_to_give = False
        if self.rx.running and not self.broken:
            try:
                receive(self)
            except (RingFault, BadAddress) as error:
                self._break(error)

    def close(self) -> None:
        """The guest is gone. What it had put into its ring is in its memory still: take that, then let go."""
        self.take()
        for ring in self.rings:
            self._close_kick(ring)
            ring.stop()
        self.chains.clear()
        self.hub.detach_all()

    def signal(self, ring: Ring) -> None:
        """Interrupt the guest, if it wants that."""
        if ring.should_signal(self.event_idx) and ring.call >= 0:
            os.eventfd_write(ring.call, 1)

    def _break(self, error: Exception) -> None:
        self.log.error("the guest broke a ring, the device stops", error=error)
        self.broken = True
        self.more_to_take = self.more_to_give = self.choked = False
        self.chains.clear()
        self.hub.detach_all()

    # ---- what the front end asks -----------------------------------------------------------------

    def set_features(self, features: int) -> None:
        self.event_idx = bool(features & F_EVENT_IDX)
        if not features & F_PROTOCOL_FEATURES:
            for ring in self.rings:
                ring.enabled = True  # nobody will say so

    def set_memory(self, regions: list[tuple[int, int, int, int, int]]) -> None:
        """May come while the rings run: they stay where they are in the front end's addresses."""
        try:
            memory = Memory([map_region(*region) for region in regions])
        except BadAddress as error:
            self.log.error("guest memory refused", error=error)
            raise Refused from error
        self._give_back_chains()
        self.memory = memory
        for ring in self.rings:
            mapped = ring.is_mapped()
            ring.unmap()
            if mapped:
                self._map(ring)

    def set_size(self, queue: int, size: int) -> None:
        ring = self.rings[queue]
        if ring.running:
            raise Refused
        ring.size = size

    def set_base(self, queue: int, next_avail: int) -> None:
        ring = self.rings[queue]
        if ring.running:
            raise Refused
        ring.next_avail = next_avail

    def set_address(self, queue: int, table: int, used: int, avail: int) -> None:
        ring = self.rings[queue]
        if ring is self.rx:
            self._give_back_chains()
        ring.where = (table, used, avail)
        if not self._map(ring):
            raise Refused
        self._start(ring)

    def set_kick(self, queue: int, fd: int) -> None:
        ring = self.rings[queue]
        self._close_kick(ring)
        ring.kick = fd
        if fd >= 0:
            # edge triggered: every write is a new edge, so the eventfd need not be read
            self._poller.add(fd, self.take if ring is self.tx else _wake_only)
        self._start(ring)

    def set_call(self, queue: int, fd: int) -> None:
        ring = self.rings[queue]
        if ring.call >= 0:
            os.close(ring.call)
        ring.call = fd
        if fd >= 0 and ring.running:
            os.eventfd_write(fd, 1)  # an interrupt may have gone to the old one

    def set_enabled(self, queue: int, enabled: bool) -> None:
        ring = self.rings[queue]
        ring.enabled = enabled
        self._start(ring)

    def stop(self, queue: int) -> int:
        ring = self.rings[queue]
        if ring is self.rx:
            self._give_back_chains()
        elif ring is self.tx:
            self.more_to_take = self.choked = False
        self._close_kick(ring)
        stopped = ring.next_avail, ring.used_index
        was_running = ring.running
        ring.stop()
        ring.next_avail = stopped[0]
        if was_running:
            ring.resume = stopped
        return stopped[0]

    def _map(self, ring: Ring) -> bool:
        try:
            ring.map(self.memory)
        except (BadAddress, RingFault) as error:
            ring.unmap()
            if ring.running:
                self._break(error)
            else:
                self.log.error("ring refused", queue=ring.index, error=error)
            return False
        return True

    def _start(self, ring: Ring) -> None:
        if ring.running or ring.kick < 0 or not ring.enabled or not ring.is_mapped():
            return
        if not ring.start():
            if self.hub.muxer.connections:
                self.log.info("the guest was restarted", connections=len(self.hub.muxer.connections))
            self.hub.detach_all()
        if self.broken and not any(other.running for other in self.rings if other is not ring):
            self.broken = False
        self.log.debug("queue starts", queue=ring.index, size=ring.size, next_avail=ring.next_avail)
        if ring is self.tx:
            self.more_to_take = True

    def _give_back_chains(self) -> None:
        """Receive buffers taken but not used are the last ones taken: take them again later."""
        self.rx.next_avail = (self.rx.next_avail - len(self.chains)) & 0xFFFF
        self.chains.clear()

    def _close_kick(self, ring: Ring) -> None:
        if ring.kick >= 0:
            self._poller.remove(ring.kick)
            os.close(ring.kick)
            ring.kick = -1


def _wake_only(_events: int) -> None:
    """The guest gave receive buffers: `serve` looks for them at the end of every turn."""
