"""Guest -> host: the tx ring's packet loop.

One function, since it runs for every packet: what is not on the way of a payload of an open connection is
called. Payload goes from guest memory to the host's descriptor by one `write`, without a copy of ours;
what does not fit is copied to the connection, so that a stalled reader holds none of the ring's few
descriptors.
"""

from __future__ import annotations

import os

from . import header
from .connection import OWES_CREDIT
from .header import LENGTH, MAX_PAYLOAD, PACKED, RW
from .vring import DESCRIPTOR, INDIRECT, NEXT, PAIR, RingFault, barrier, gather

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .device import Device

# rounds of one turn: other descriptors must get theirs
ROUNDS = 64
PAIR_BYTES = 32


def transmit(device: Device) -> None:
    """Take the packets the guest has queued. Raises `RingFault` or `BadAddress`: nothing may be taken then.

    `device.more_to_take` says that there may be more, `device.choked` that it must wait for the guest.
    """
    ring, hub, memory = device.tx, device.hub, device.memory
    muxer = hub.muxer
    region = ring.region
    if region is None:
        raise RingFault("no guest memory")
    main, main_gpa, main_end = region.view, region.gpa, region.gpa_end
    avail, used, elements, table = ring.avail, ring.used, ring.elements, ring.table
    size, mask, event_at, event_idx = ring.size, ring.mask, ring.event_at, device.event_idx
    read_descriptor, read_pair, read_header = DESCRIPTOR.unpack_from, PAIR.unpack_from, PACKED.unpack_from
    connections, write = muxer.connections, os.write
    right_cids = header.cids(device.guest_cid, header.HOST_CID)
    last, used_index = ring.next_avail, ring.used_index
    device.more_to_take = device.choked = False
    if not event_idx:
        used[0] = 1  # no kicks while we look
    for _ in range(ROUNDS):
        end = avail[1]
        if end == last:
            if event_idx:
                used[event_at] = last
            else:
                used[0] = 0
            barrier()
            if avail[1] == last:
                return
            if not event_idx:
                used[0] = 1
            continue
        if (end - last) & 0xFFFF > size:
            raise RingFault(f"available index jumped from {last} to {end}")
        if muxer.is_choked():
            device.choked = True
            return
        while last != end:
            head = avail[2 + (last & mask)]
            last = (last + 1) & 0xFFFF
            if head >= size:
                raise RingFault(f"descriptor {head} of {size}")
            # The shapes of real drivers: header and payload in one descriptor, in two, or in an indirect
            # table of two. Anything else goes the slow way, which also finds what is wrong with it.
            address, length, flags, following = read_descriptor(table, head * 16)
            at, rest, plain = address + LENGTH, length - LENGTH, flags == 0
            if flags == INDIRECT:
                if length == PAIR_BYTES and main_gpa <= address and address + PAIR_BYTES <= main_end:
                    address, length, flags, following, at, rest, tail, _ = read_pair(main, address - main_gpa)
                    plain = flags == NEXT and following == 1 and tail == 0 and length == LENGTH
            elif flags == NEXT and length == LENGTH and following < size:
                at, rest, tail, _ = read_descriptor(table, following * 16)
                plain = tail == 0
            payload: memoryview | None = None
            if (
                plain
                and length >= LENGTH
                and main_gpa <= address
                and address + length <= main_end
                and main_gpa <= at
                and at + rest <= main_end
            ):
                cids, key, count, kind, flags, alloc, fwd = read_header(main, address - main_gpa)
                if count <= rest and count <= MAX_PAYLOAD:
                    at -= main_gpa
                    payload = main[at : at + count]
            else:
                ring.region = memory.region_at(address) or region
                segments = ring.segments(head, memory, writable=False)
                packet = memoryview(gather(segments, LENGTH + MAX_PAYLOAD))
                if len(packet) < LENGTH:
                    cids = b""
                else:
                    cids, key, count, kind, flags, alloc, fwd = read_header(packet, 0)
                    if count <= len(packet) - LENGTH:
                        payload = packet[LENGTH : LENGTH + count]

            if cids != right_cids:
                device.malformed += 1  # not even an answer has anywhere to go
            else:
                stream = connections.get(key)
                if kind != RW or stream is None or payload is None or not stream.takes_data:
                    _other(device, key, kind, flags=flags, alloc=alloc, fwd=fwd)
                elif (alloc != stream.peer_alloc or fwd != stream.peer_fwd) and not stream.on_credit(
                    alloc, fwd
                ):
                    hub.reset(stream, "credit for bytes that were never sent")
                else:
                    if count:
                        done = 0
                        if not stream.pending:
                            try:
                                done = write(stream.fd, payload)
                                stream.rx += done
                            except BlockingIOError:
                                stream.stalls += 1
                            except OSError as error:
                                hub.host_failed(stream, error)
                                done = count
                        if done < count:
                            if not stream.hold(payload[done:]):
                                hub.reset(stream, "more data than it had credit for")
                            elif not stream.pollable:
                                hub.flush(stream)
                        elif stream.rx - stream.rx_told >= stream.threshold:
                            muxer.owe(stream, OWES_CREDIT)
                    if stream.waits_for_credit:
                        hub.credit_came(stream)
            # x86 keeps the order of stores: entry first, then the index, which is one two-byte store
            slot = 2 * (used_index & mask)
            elements[slot] = head
            elements[slot + 1] = 0
            used_index = (used_index + 1) & 0xFFFF
        used[1] = ring.used_index = used_index
        ring.next_avail = last
        # the guest hears of credit and of its free buffers before the next round
        if muxer.control:
            device.give()
            if device.broken:
                return
        device.signal(ring)
    device.more_to_take = True


def _other(device: Device, key: int, kind: int, *, flags: int, alloc: int, fwd: int) -> None:
    """A packet that is not payload for an open connection, or is wrong."""
    hub = device.hub
    if kind & 0xFFFF != header.TYPE_STREAM or kind == RW:
        stream = hub.muxer.connections.get(key)
        if stream is None:
            hub.muxer.reset(key)
        else:
            hub.reset(stream, "payload that is not allowed" if kind == RW else "wrong packet type")
    else:
        hub.on_packet(key, kind >> 16, flags=flags, alloc=alloc, fwd=fwd)
