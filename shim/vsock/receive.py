"""Host -> guest: the rx ring's packet loop.

Receive buffers are parsed once and kept in `device.chains` until used. A stream that has data gets one
`readv` over as many of them as its credit and its burst allow, straight into guest memory; then the
headers are filled in. Bursts grow while a stream fills them: a bulk transfer costs one call for 256 KiB,
a key press takes one buffer.
"""

from __future__ import annotations

import os

from .header import LENGTH, RW
from .stream import MAX_BURST, MIN_BURST
from .vring import DESCRIPTOR, INDIRECT, NEXT, PAIR, WRITE, RingFault, barrier

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .device import Device
    from .stream import Stream

# bursts of one turn: other descriptors must get theirs
TURNS = 64
# far below IOV_MAX
MAX_BUFFERS = 256
FEW_CHAINS = 32
PAIR_BYTES = 32


def receive(device: Device) -> None:
    """Give the guest control packets, then data, while there are receive buffers.

    Raises `RingFault` or `BadAddress`: nothing may be given then.
    """
    ring, muxer, chains = device.rx, device.hub.muxer, device.chains
    control, ready = muxer.control, muxer.ready
    device.more_to_give = False
    turns = TURNS
    while control or ready:
        if not chains and not _refill(device):
            break
        if control:
            packet = muxer.next_control()
            if packet is None:
                continue
            head, room, _, _ = chains.popleft()
            room[:] = packet
            slot = 2 * (ring.used_index & ring.mask)
            ring.elements[slot] = head
            ring.elements[slot + 1] = LENGTH
            ring.used[1] = ring.used_index = (ring.used_index + 1) & 0xFFFF
            continue
        if turns == 0:
            device.more_to_give = True
            break
        turns -= 1
        stream = ready.popleft()
        stream.in_ready = False
        if stream.wants_host_data():
            if stream.credit() > 0:
                _burst(device, stream)
            else:
                # the guest must read first; it sends an update by itself then
                stream.waits_for_credit = True
    if ring.signalled != ring.used_index:
        device.signal(ring)


def _refill(device: Device) -> bool:
    """Take new receive buffers. Without any, ask for a kick when there are, and look once more."""
    if _take_chains(device):
        return True
    if device.event_idx:
        device.rx.used[device.rx.event_at] = device.rx.next_avail
    barrier()
    return _take_chains(device)


def _burst(device: Device, stream: Stream) -> None:
    """Move what the host has, once, to the guest. There is a buffer and there is credit."""
    ring, hub, chains = device.rx, device.hub, device.chains
    muxer = hub.muxer
    if len(chains) < FEW_CHAINS:
        _take_chains(device)
    credit, burst = stream.credit(), stream.burst
    buffers: list[memoryview] = []
    total = 0
    for _, _, room, length in chains:
        if total + length > credit:
            if credit > total:
                buffers.append(room[: credit - total])
                total = credit
            break
        buffers.append(room)
        total += length
        if total >= burst or len(buffers) == MAX_BUFFERS:
            break
    try:
        count = os.readv(stream.fd, buffers)
    except BlockingIOError:
        if stream.eof_asked:
            hub.host_eof(stream)
        return
    except OSError as error:
        hub.host_failed(stream, error)
        return
    if count == 0:
        hub.host_eof(stream)
        return
    if count == total:
        if burst < MAX_BURST:
            stream.burst = burst * 4
    elif count <= MIN_BURST:
        stream.burst = MIN_BURST
    elements, mask, used_index = ring.elements, ring.mask, ring.used_index
    # nearly all packets of a burst are equally long: their headers are the same
    packet, packet_length = b"", 0
    left = count
    while left:
        head, room, _, length = chains.popleft()
        if length != packet_length or length > left:
            packet_length = length = min(length, left)
            packet = muxer.encode(stream, length, RW)
        room[:] = packet
        left -= length
        slot = 2 * (used_index & mask)
        elements[slot] = head
        elements[slot + 1] = LENGTH + length
        used_index = (used_index + 1) & 0xFFFF
    ring.used[1] = ring.used_index = used_index
    stream.tx += count
    # A short read means empty: the next edge will tell. Unless there are no edges (any more).
    if count == total or not stream.pollable or stream.last_edge or stream.eof_asked:
        muxer.wake(stream)
    device.signal(ring)


def _take_chains(device: Device) -> bool:
    """Parse the receive buffers that the guest has made available. Are there any now?

    A buffer is a header's room and at least one byte of payload: header alone and payload behind it in one
    descriptor, or in the next. Of a longer chain only its first two pieces are used.
    """
    ring, memory, chains = device.rx, device.memory, device.chains
    end = ring.end()
    last = ring.next_avail
    if last == end:
        return bool(chains)
    region = ring.region
    if region is None:
        raise RingFault("no guest memory")
    main, main_gpa, main_end = region.view, region.gpa, region.gpa_end
    avail, table, size, mask = ring.avail, ring.table, ring.size, ring.mask
    while last != end:
        head = avail[2 + (last & mask)]
        last = (last + 1) & 0xFFFF
        if head >= size:
            raise RingFault(f"descriptor {head} of {size}")
        address, length, flags, following = DESCRIPTOR.unpack_from(table, head * 16)
        plain = False
        if flags == INDIRECT:
            if length == PAIR_BYTES and main_gpa <= address and address + PAIR_BYTES <= main_end:
                address, length, flags, following, at, rest, tail, _ = PAIR.unpack_from(
                    main, address - main_gpa
                )
                plain = flags == NEXT | WRITE and following == 1 and tail == WRITE and length == LENGTH
        elif flags == NEXT | WRITE and length == LENGTH and following < size:
            at, rest, tail, _ = DESCRIPTOR.unpack_from(table, following * 16)
            plain = tail == WRITE
        if (
            plain
            and rest
            and main_gpa <= address
            and address + length <= main_end
            and main_gpa <= at
            and at + rest <= main_end
        ):
            address -= main_gpa
            at -= main_gpa
            chains.append((head, main[address : address + LENGTH], main[at : at + rest], rest))
            continue
        ring.region = memory.region_at(address) or region
        first, *others = ring.segments(head, memory, writable=True)
        if len(first) > LENGTH:
            chains.append((head, first[:LENGTH], first[LENGTH:], len(first) - LENGTH))
        elif len(first) == LENGTH and others:
            chains.append((head, first, others[0], len(others[0])))
        else:
            raise RingFault(f"receive buffer of {len(first)} bytes")
    ring.next_avail = last
    return True
