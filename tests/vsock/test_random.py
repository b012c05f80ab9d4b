"""Random lives of many connections at once, and the bytes of each compared with what was sent.

A seed decides everything but the timing. To look longer:

    KATA_PY_SEEDS=500 pytest tests/vsock/test_random.py
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
from pathlib import Path

import pytest

from shim.vsock import header
from shim.vsock.header import SHUT_SEND
from tests.fakes.guest_driver import RX, TX, GuestSocket
from tests.vsock.device import RunningDevice

SEEDS = int(os.environ.get("KATA_PY_SEEDS", "3"))
STEPS = 150
AT_ONCE = 8
LAYOUTS = ("indirect", "one", "two", "three")


class Life:
    """One connection: what either end has sent, has received, and has ended."""

    def __init__(self, device: RunningDevice, random_: random.Random) -> None:
        self.device, self.random = device, random_
        self.to_guest = self.to_host = 0
        self.host_read = 0
        self.guest_done = self.host_done = self.cut = False
        self.control: socket.socket | None = None
        self.pattern = random_.randbytes(1 << 16) * 2

    def expected(self, at: int, size: int) -> bytes:
        """What stands at offset `at` of either stream."""
        found, offset = bytearray(), at & 0xFFFF
        while len(found) < size:
            found += self.pattern[offset : offset + 65536]
        return bytes(found[:size])

    # ---- the host's end, kinds differ ------------------------------------------------------------

    guest: GuestSocket
    source: int = -1  # to read what the guest sent
    sink: int = -1  # to write what the guest gets

    def host_write(self) -> None:
        if self.sink < 0 or self.host_done:
            return
        size = self.random.choice([1, 100, 4096, 70_000])
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            self.to_guest += os.write(self.sink, self.expected(self.to_guest, size))

    def host_reads(self) -> None:
        if self.source < 0:
            return
        size = self.random.choice([1, 1000, 65536, 1 << 20])
        # A socket that was closed with unread bytes in it says so, behind its own last byte.
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            data = os.read(self.source, size)
            assert data == self.expected(self.host_read, len(data)), f"from {self.host_read} on"
            self.host_read += len(data)

    def host_ends(self) -> None:
        raise NotImplementedError

    # ---- the guest's end -------------------------------------------------------------------------

    def guest_write(self) -> None:
        if self.source < 0 or self.guest_done or not self.guest.is_open:
            return
        size = self.random.choice([1, 50, 4096, 30_000, 400_000])  # the last fills a pipe, and the device
        small = size < 100 and not self.guest.outgoing
        self.guest.packet_size = self.random.choice([1, 7]) if small else 65536
        self.guest.send(self.expected(self.to_host, size))
        self.to_host += size

    def guest_pauses(self) -> None:
        if self.guest.reading:
            self.guest.reading = False
        elif self.guest.is_open:
            self.guest.read()

    def guest_ends(self) -> None:
        if not self.guest_done:
            self.guest_done = True
            self.guest.shutdown(SHUT_SEND)

    def guest_resets(self) -> None:
        """What is in the ring by then still arrives."""
        if self.guest.is_open and not self.cut:
            self.cut = self.guest_done = self.host_done = True
            self.to_host -= len(self.guest.outgoing)
            self.guest.outgoing.clear()
            self.guest.is_open = False
            self.guest.emit(header.OP_RST)
            self.device.guest.sockets.pop((self.guest.port, self.guest.host_port), None)

    # ---- the end ---------------------------------------------------------------------------------

    def finish(self) -> None:
        """Bring everything to its end, and compare."""
        guest = self.guest
        if not guest.reading and guest.is_open:
            guest.read()
        guest.reading = True
        self.host_ends()
        self.guest_ends()
        self.device.run_until(self._whole)
        if not self.cut:
            guest.close()
            self.device.run_until(lambda: guest.is_reset)
            assert bytes(guest.received) == self.expected(0, self.to_guest)
        else:
            assert bytes(guest.received) == self.expected(0, len(guest.received))
        if self.control is not None:
            line = b""
            while not line.endswith(b"\n"):
                line = self.device.answer(self.control)
            rx, tx = (int(word.partition(b"=")[2]) for word in line.split()[1:3])
            assert line.startswith(b"DRAINED ")
            assert rx == self.to_host
            # What was on its way to a guest that has reset the connection counts as well.
            assert len(guest.received) <= tx <= self.to_guest if self.cut else tx == self.to_guest

    def _whole(self) -> bool:
        self.host_reads()
        sent = self.source < 0 or self.host_read == self.to_host
        return sent and (self.cut or len(self.guest.received) == self.to_guest)

    def close(self) -> None:
        for fd in {self.source, self.sink} - {-1}:
            os.close(fd)
        if self.control is not None:
            self.device.clients.remove(self.control)
            self.control.close()


class Connected(Life):
    def __init__(self, device: RunningDevice, random_: random.Random) -> None:
        super().__init__(device, random_)
        client, self.guest = device.connect()
        device.clients.remove(client)
        client.setblocking(False)
        self.source = self.sink = client.detach()

    def host_ends(self) -> None:
        if not self.host_done:
            self.host_done = True
            with socket.socket(fileno=os.dup(self.sink)) as end:
                end.shutdown(socket.SHUT_WR)


class Output(Life):
    def __init__(self, device: RunningDevice, random_: random.Random) -> None:
        super().__init__(device, random_)
        self.source, theirs = os.pipe2(os.O_NONBLOCK)
        self.control, self.guest = device.pass_fd(theirs)
        os.close(theirs)

    def host_ends(self) -> None:
        """Nothing: it only reads."""


class Input(Life):
    """A FIFO that shows no end: `eof` does."""

    def __init__(self, device: RunningDevice, random_: random.Random) -> None:
        super().__init__(device, random_)
        path = f"{device.path}.fifo"
        os.mkfifo(path)
        self.sink = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        theirs = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        os.unlink(path)
        self.control, self.guest = device.pass_fd(theirs)
        os.close(theirs)

    def host_ends(self) -> None:
        if not self.host_done:
            self.host_done = True
            assert self.control is not None
            self.control.sendall(b"eof\n")

    def _whole(self) -> bool:
        return super()._whole() and bool(self.cut or self.guest.peer_shut & SHUT_SEND)


def pause_machine(device: RunningDevice) -> None:
    """As `stop` and `cont` of QEMU: the rings go on where they were."""
    bases = [device.guest.stop_ring(index) for index in (RX, TX)]
    for index, base in zip((RX, TX), bases, strict=True):
        device.guest.start_ring(index, base)
    device.guest.rx.notify()
    device.guest.tx.notify()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_every_byte_of_every_connection_arrives_in_order(tmp_path: Path, seed: int) -> None:
    random_ = random.Random(seed)
    device = RunningDevice(tmp_path, layout=LAYOUTS[seed % 4], event_idx=seed % 8 < 6)
    lives: list[Life] = []
    try:
        device.guest.boot()
        device.still_works()
        fds = device.open_fds()
        for _ in range(STEPS):
            if len(lives) < AT_ONCE and random_.random() < 0.1:
                lives.append(random_.choice([Connected, Output, Input])(device, random_))
            for life in lives:
                acts = [life.host_write, life.guest_write, life.host_reads, life.guest_pauses]
                random_.choice(acts)()
            chance = random_.random()
            if lives and chance < 0.06:
                life = random_.choice(lives)
                random_.choice([life.host_ends, life.guest_ends, life.guest_resets])()
            elif chance < 0.09:
                pause_machine(device)
            elif chance < 0.1:
                assert device.guest.share_memory(random_.choice([0, 8 << 20])) == 0
            elif lives and chance < 0.12:
                life = lives.pop(random_.randrange(len(lives)))
                life.finish()
                life.close()
            device.guest.work(0)
        for life in lives:
            life.finish()
            life.close()
        assert device.guest.share_memory() == 0  # each region is a descriptor
        device.run_until(lambda: device.open_fds() <= fds)
        device.still_works()
    finally:
        device.close()
