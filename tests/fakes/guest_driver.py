"""The other side of the vsock device: a vhost-user front end with guest RAM, and a virtio-vsock driver in it.

`GuestDriver` plays QEMU and the guest's kernel in one object: RAM is a memfd, rings lie at its start,
buffers behind them. `GuestSocket` is a connection as a program in the guest has it. Nothing happens by
itself: `run_until` works the rings until a condition holds. Tests that want to break rules write RAM and
rings themselves.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

from shim.vsock import header
from shim.vsock.header import LENGTH, MASK32, SHUT_RCV, SHUT_SEND
from shim.vsock.vhost_user import Request

RAM = 16 << 20
GPA = 0x10000000
UVA = 0x7F0000000000
SIZE = 128
RX, TX = 0, 1
RX_SLOTS, RX_ROOM = 64, 4096
TX_SLOTS, TX_ROOM = 32, 65536
RX_BASE, TX_BASE = 1 << 20, 4 << 20
BUF_ALLOC = 256 * 1024
NEXT, WRITE, INDIRECT = 1, 2, 4
F_EVENT_IDX, F_VERSION_1, F_PROTOCOL, F_INDIRECT = 1 << 29, 1 << 32, 1 << 30, 1 << 28


class Packet:
    def __init__(self, raw: bytes) -> None:
        fields = header.FIELDS.unpack_from(raw)
        self.src_cid, self.dst_cid, self.src_port, self.dst_port = fields[:4]
        self.length, self.type, self.op, self.flags, self.alloc, self.fwd = fields[4:]
        self.payload = raw[LENGTH : LENGTH + self.length]

    def __repr__(self) -> str:
        return f"<op {self.op} {self.src_port}->{self.dst_port} len {self.length} flags {self.flags}>"


class DriverRing:
    """The driver's side of one split ring at offset `at` of RAM."""

    def __init__(self, ram: memoryview, at: int) -> None:
        self.at = at
        self.table = ram[at : at + 16 * SIZE]
        self.avail = ram[at + 4096 : at + 4096 + 6 + 2 * SIZE].cast("H")
        self.used = ram[at + 8192 : at + 8192 + 6 + 8 * SIZE].cast("H")
        self.elements = ram[at + 8196 : at + 8196 + 8 * SIZE].cast("I")
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_NONBLOCK)
        self.next = self.seen = 0

    def describe(self, index: int, address: int, length: int, flags: int, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.table, 16 * index, address, length, flags, following)

    def post(self, head: int) -> None:
        self.avail[2 + self.next % SIZE] = head
        self.next = (self.next + 1) & 0xFFFF
        self.avail[1] = self.next

    def notify(self) -> None:
        os.eventfd_write(self.kick, 1)

    def collect(self) -> list[tuple[int, int]]:
        found = []
        while self.seen != self.used[1]:
            slot = 2 * (self.seen % SIZE)
            found.append((self.elements[slot], self.elements[slot + 1]))
            self.seen = (self.seen + 1) & 0xFFFF
        # used_event: interrupt for the next one
        self.avail[2 + SIZE] = self.seen
        return found


class GuestSocket:
    """A connection in the guest. `reading` False stops giving credit, as a program that does not read."""

    def __init__(self, driver: GuestDriver, port: int, host_port: int) -> None:
        self.driver, self.port, self.host_port = driver, port, host_port
        self.received = bytearray()
        self.reading = True
        self.unread = 0
        self.outgoing = bytearray()
        self.peer_shut = 0
        self.is_open = self.is_reset = False
        self.tx = self.peer_fwd = self.peer_alloc = self.fwd = self.told = 0
        self.packet_size = TX_ROOM
        self.shut_when_sent = 0
        self.updates = 0

    def send(self, data: bytes) -> None:
        self.outgoing += data

    def shutdown(self, flags: int) -> None:
        """After everything sent so far."""
        self.shut_when_sent |= flags

    def close(self) -> None:
        self.shutdown(SHUT_RCV | SHUT_SEND)

    def emit(self, op: int, payload: bytes = b"", flags: int = 0) -> None:
        self.told = self.fwd
        self.driver.send(self.port, self.host_port, op, payload, flags=flags, fwd=self.fwd)

    def read(self) -> None:
        """Read what `reading` False left."""
        self.reading = True
        self.fwd += self.unread
        self.unread = 0
        self.emit(header.OP_CREDIT_UPDATE)

    def on_packet(self, packet: Packet) -> None:
        self.peer_alloc, self.peer_fwd = packet.alloc, packet.fwd
        if packet.op == header.OP_RW:
            self.received += packet.payload
            if self.reading:
                self.fwd += packet.length
                if self.fwd - self.told >= BUF_ALLOC // 4:
                    self.emit(header.OP_CREDIT_UPDATE)
            else:
                self.unread += packet.length
        elif packet.op == header.OP_RESPONSE:
            self.is_open = True
        elif packet.op == header.OP_CREDIT_UPDATE:
            self.updates += 1
        elif packet.op == header.OP_SHUTDOWN:
            self.peer_shut |= packet.flags
        elif packet.op == header.OP_RST:
            self.is_reset, self.is_open = True, False
            self.driver.sockets.pop((self.port, self.host_port), None)

    def pump(self) -> None:
        while self.is_open and self.outgoing and self.driver.has_room():
            credit = self.peer_alloc - ((self.tx - self.peer_fwd) & MASK32)
            size = min(credit, self.packet_size, len(self.outgoing))
            if size <= 0:
                break
            self.emit(header.OP_RW, bytes(self.outgoing[:size]))
            del self.outgoing[:size]
            self.tx += size
        if self.is_open and not self.outgoing and self.shut_when_sent and self.driver.has_room():
            self.emit(header.OP_SHUTDOWN, flags=self.shut_when_sent)
            self.shut_when_sent = 0


class GuestDriver:
    """Layouts of tx packets: "two" descriptors (header, payload), "one", "three", or "indirect"."""

    def __init__(
        self, front: socket.socket, layout: str = "indirect", event_idx: bool = True, cid: int = 3
    ) -> None:
        self.front, self.layout, self.event_idx, self.cid = front, layout, event_idx, cid
        self.memfd = os.memfd_create("guest-ram")
        os.ftruncate(self.memfd, RAM)
        self.map = mmap.mmap(self.memfd, RAM)
        self.ram = memoryview(self.map)
        self.rings = [DriverRing(self.ram, 65536 * (1 + index)) for index in (RX, TX)]
        self.rx, self.tx = self.rings
        self.free = list(range(TX_SLOTS))
        self.sockets: dict[tuple[int, int], GuestSocket] = {}
        self.listening: dict[int, Callable[[GuestSocket], object]] = {}
        self.packets: list[Packet] = []
        self.keep_packets = False
        self._arrived: deque[Packet] = deque()
        self._handling = False
        self.features = 0

    def close(self) -> None:
        for ring in self.rings:
            os.close(ring.kick)
            os.close(ring.call)
        os.close(self.memfd)
        self.front.close()

    # ---- vhost-user ------------------------------------------------------------------------------

    def request(
        self, number: int, body: bytes = b"", fds: list[int] | None = None, ack: bool = False
    ) -> None:
        data = struct.pack("<III", number, 1 | (8 if ack else 0), len(body)) + body
        socket.send_fds(self.front, [data], fds or [])

    def answer(self) -> bytes:
        head = self._exactly(12)
        return self._exactly(struct.unpack("<III", head)[2])

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = self.front.recv(size - len(data))
            assert part, "the device left"
            data += part
        return data

    def negotiate(self) -> None:
        self.request(Request.GET_FEATURES)
        (offered,) = struct.unpack("<Q", self.answer())
        self.request(Request.GET_PROTOCOL_FEATURES)
        self.answer()
        self.request(Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", 8 | 1 | 512))
        self.request(Request.SET_OWNER)
        wanted = F_VERSION_1 | F_PROTOCOL | F_INDIRECT | (F_EVENT_IDX if self.event_idx else 0)
        self.features = offered & wanted
        self.request(Request.SET_FEATURES, struct.pack("<Q", self.features))

    def share_memory(self, split: int = 0) -> int:
        """The device's verdict: 0 is good. With `split`, in two regions of which the first has that many
        bytes."""
        parts = [(0, split), (split, RAM - split)] if split else [(0, RAM)]
        body = struct.pack("<II", len(parts), 0)
        for at, size in parts:
            body += struct.pack("<QQQQ", GPA + at, size, UVA + at, at)
        self.request(Request.SET_MEM_TABLE, body, [self.memfd] * len(parts), ack=True)
        return struct.unpack("<Q", self.answer())[0]

    def start_ring(self, index: int, base: int = 0) -> None:
        ring = self.rings[index]
        self.request(Request.SET_VRING_NUM, struct.pack("<II", index, SIZE))
        self.request(Request.SET_VRING_BASE, struct.pack("<II", index, base))
        at = UVA + ring.at
        self.request(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, at, at + 8192, at + 4096, 0))
        self.request(Request.SET_VRING_CALL, struct.pack("<Q", index), [ring.call])
        self.request(Request.SET_VRING_KICK, struct.pack("<Q", index), [ring.kick])
        self.request(Request.SET_VRING_ENABLE, struct.pack("<II", index, 1), ack=True)
        self.answer()

    def stop_ring(self, index: int) -> int:
        self.request(Request.GET_VRING_BASE, struct.pack("<II", index, 0))
        return struct.unpack("<II", self.answer())[1]

    def boot(self) -> None:
        """Everything from the first message to posted receive buffers."""
        self.negotiate()
        assert self.share_memory() == 0
        self.restart()

    def restart(self) -> None:
        """Fresh rings, as after the boot of a guest: the driver knows no connection."""
        for ring in self.rings:
            ring.next = ring.seen = 0
            ring.avail[0] = ring.avail[1] = ring.avail[2 + SIZE] = 0
            ring.used[0] = ring.used[1] = ring.used[2 + 4 * SIZE] = 0
        self.sockets.clear()
        self._arrived.clear()
        self.free = list(range(TX_SLOTS))
        for slot in range(RX_SLOTS):
            self.post_rx(slot)
        self.start_ring(RX)
        self.start_ring(TX)
        self.rx.notify()

    # ---- packets ---------------------------------------------------------------------------------

    def post_rx(self, slot: int) -> None:
        at = GPA + RX_BASE + slot * 8192
        self.rx.describe(2 * slot, at, LENGTH, NEXT | WRITE, 2 * slot + 1)
        self.rx.describe(2 * slot + 1, at + 64, RX_ROOM, WRITE)
        self.rx.post(2 * slot)

    def has_room(self) -> bool:
        return bool(self.free)

    def send(
        self,
        port: int,
        host_port: int,
        op: int,
        payload: bytes = b"",
        *,
        flags: int = 0,
        fwd: int = 0,
        alloc: int = BUF_ALLOC,
        length: int | None = None,
        kind: int = 1,
        src_cid: int | None = None,
        dst_cid: int = 2,
    ) -> None:
        """Put one packet into the tx ring, waiting for a free slot; `length` lies about the payload."""
        while not self.free:
            self.work(1.0)
        slot = self.free.pop()
        source = self.cid if src_cid is None else src_cid
        claimed = len(payload) if length is None else length
        at = TX_BASE + slot * 2 * TX_ROOM
        head = (source, dst_cid, port, host_port, claimed, kind, op, flags, alloc, fwd & MASK32)
        header.FIELDS.pack_into(self.ram, at, *head)
        body = at + LENGTH if self.layout == "one" else at + 4096
        self.ram[body : body + len(payload)] = payload
        self._describe(slot, GPA + at, GPA + body, len(payload))
        self.tx.post(4 * slot)
        self.tx.notify()

    def _describe(self, slot: int, at: int, body: int, size: int) -> None:
        first, describe = 4 * slot, self.tx.describe
        if size == 0:
            describe(first, at, LENGTH, 0)
        elif self.layout == "one":
            describe(first, at, LENGTH + size, 0)
        elif self.layout == "two":
            describe(first, at, LENGTH, NEXT, first + 1)
            describe(first + 1, body, size, 0)
        elif self.layout == "three" and size > 1:
            describe(first, at, LENGTH, NEXT, first + 1)
            describe(first + 1, body, size // 2, NEXT, first + 2)
            describe(first + 2, body + size // 2, size - size // 2, 0)
        else:
            table = at + 2048
            struct.pack_into("<QIHHQIHH", self.ram, table - GPA, at, LENGTH, NEXT, 1, body, size, 0, 0)
            describe(first, table, 32, INDIRECT)

    def work(self, timeout_s: float = 0.0) -> None:
        """Wait for an interrupt (or not), then do all there is to do."""
        select.select([ring.call for ring in self.rings], [], [], timeout_s)
        for ring in self.rings:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(ring.call)
        self.free += [head // 4 for head, _ in self.tx.collect()]
        for head, size in self.rx.collect():
            at = RX_BASE + head // 2 * 8192
            raw = bytes(self.ram[at : at + LENGTH]) + bytes(self.ram[at + 64 : at + 64 + size - LENGTH])
            self.post_rx(head // 2)
            self._arrived.append(Packet(raw))
        self.rx.notify()
        if self._handling:
            return  # a packet's handler waits for room to send: the others come after it
        self._handling = True
        try:
            while self._arrived:
                self._on_packet(self._arrived.popleft())
        finally:
            self._handling = False
        for sock in list(self.sockets.values()):
            sock.pump()

    def _on_packet(self, packet: Packet) -> None:
        assert (packet.src_cid, packet.dst_cid, packet.type) == (2, self.cid, 1)
        if self.keep_packets:
            self.packets.append(packet)
        key = packet.dst_port, packet.src_port
        sock = self.sockets.get(key)
        if packet.op == header.OP_REQUEST and packet.dst_port in self.listening:
            sock = GuestSocket(self, packet.dst_port, packet.src_port)
            self.sockets[key] = sock
            sock.is_open = True
            sock.on_packet(packet)
            sock.emit(header.OP_RESPONSE)
            self.listening[packet.dst_port](sock)
        elif sock is not None:
            sock.on_packet(packet)
        elif packet.op == header.OP_REQUEST:
            self.send(packet.dst_port, packet.src_port, header.OP_RST)

    def run_until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Work until `condition` is true; AssertionError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "timed out"
            self.work(0.02)

    def connect(self, port: int, host_port: int) -> GuestSocket:
        """Ask for a host port; the caller runs until it `is_open` or `is_reset`."""
        sock = GuestSocket(self, port, host_port)
        self.sockets[port, host_port] = sock
        sock.emit(header.OP_REQUEST)
        return sock
