"""The real program, driven by a guest in Python: bytes, half-closes, ends, stalls, many at once."""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shim.vsock import header
from tests.vsock.device import RunningDevice

MIB = 1 << 20
noise = random.Random(7)


def fifo(folder: Path, flags: int, name: str = "fifo") -> int:
    path = folder / name
    if not path.exists():
        os.mkfifo(path)
    return os.open(path, flags)


class Reader(threading.Thread):
    """Reads a descriptor to its end."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.fd, self.hash, self.count = fd, hashlib.sha256(), 0
        os.set_blocking(fd, True)
        self.start()

    def run(self) -> None:
        while data := os.read(self.fd, MIB):
            self.hash.update(data)
            self.count += len(data)


class Writer(threading.Thread):
    def __init__(self, fd: int, data: bytes, close: bool = True) -> None:
        super().__init__(daemon=True)
        self.fd, self.data, self.close = fd, data, close
        self.start()

    def run(self) -> None:
        view = memoryview(self.data)
        while view:
            view = view[os.write(self.fd, view) :]
        if self.close:
            os.close(self.fd)


@pytest.fixture(params=["indirect", "one", "two", "three"])
def any_layout(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunningDevice]:
    running = RunningDevice(tmp_path, layout=request.param, event_idx=request.param != "two")
    try:
        running.guest.boot()
        yield running
    finally:
        running.close()


def test_stdout_arrives_whole_for_every_shape_of_packet(any_layout: RunningDevice, tmp_path: Path) -> None:
    device = any_layout
    read_end = fifo(tmp_path, os.O_RDONLY | os.O_NONBLOCK)
    write_end = fifo(tmp_path, os.O_WRONLY)
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    reader = Reader(read_end)
    data = noise.randbytes(8 * MIB + 12345)
    guest.send(data)
    guest.close()
    assert device.answer(control).startswith(b"DRAINED rx=%d tx=0 " % len(data))
    assert control.recv(1) == b""
    reader.join(5)
    assert reader.hash.digest() == hashlib.sha256(data).digest()
    device.run_until(lambda: guest.is_reset)


def test_small_packets_arrive_in_order(device: RunningDevice, tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    guest.packet_size = 7
    reader = Reader(read_end)
    data = noise.randbytes(100_000)
    guest.send(data)
    guest.close()
    assert device.answer(control).startswith(b"DRAINED rx=100000 ")
    reader.join(5)
    assert reader.hash.digest() == hashlib.sha256(data).digest()


def test_stdin_arrives_whole_and_ends_when_its_writers_left(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    _control, guest = device.pass_fd(read_end)
    os.close(read_end)
    data = noise.randbytes(8 * MIB + 99)
    Writer(write_end, data)
    device.run_until(lambda: guest.peer_shut)
    assert guest.peer_shut == header.SHUT_SEND
    assert hashlib.sha256(guest.received).digest() == hashlib.sha256(data).digest()


def test_eof_on_a_fifo_opened_both_ways_comes_after_the_last_byte(
    device: RunningDevice, tmp_path: Path
) -> None:
    both = fifo(tmp_path, os.O_RDWR | os.O_NONBLOCK)
    control, guest = device.pass_fd(both)
    guest.reading = False
    data = noise.randbytes(60_000)
    assert os.write(both, data) == len(data)
    control.sendall(b"eof\n")
    device.run_until(lambda: guest.peer_shut)
    assert guest.received == data
    guest.read()
    guest.close()
    assert device.answer(control).startswith(b"DRAINED rx=0 tx=60000 ")


def test_eof_waits_for_a_guest_that_reads_slowly(device: RunningDevice, tmp_path: Path) -> None:
    both = fifo(tmp_path, os.O_RDWR | os.O_NONBLOCK)
    control, guest = device.pass_fd(both)
    guest.reading = False
    data = noise.randbytes(2 * MIB)
    writer = Writer(fifo(tmp_path, os.O_WRONLY), data)
    device.run_until(lambda: len(guest.received) == 256 * 1024)
    assert writer.is_alive()
    while writer.is_alive():
        guest.read()
        device.guest.work(0.01)
    control.sendall(b"eof\n")
    guest.reading = False
    guest.read()
    device.run_until(lambda: guest.peer_shut)
    assert guest.received == data


def test_bytes_written_before_the_guest_answers_are_not_lost(device: RunningDevice, tmp_path: Path) -> None:
    both = fifo(tmp_path, os.O_RDWR | os.O_NONBLOCK)
    os.write(both, b"early")
    client = device.client()
    client.sendall(b"passfd\n")
    socket.send_fds(client, [b"1027 stream"], [both])
    client.sendall(b"eof\n")
    assert device.answer(client).startswith(b"OK ")
    guest = device.accepted[-1]
    device.run_until(lambda: guest.peer_shut)
    assert guest.received == b"early"


def test_a_fifo_whose_writer_has_not_come_yet_is_not_at_its_end(
    device: RunningDevice, tmp_path: Path
) -> None:
    read_end = fifo(tmp_path, os.O_RDONLY | os.O_NONBLOCK)
    _, guest = device.pass_fd(read_end)
    for _ in range(10):
        device.guest.work(0.01)
    assert not guest.peer_shut
    write_end = fifo(tmp_path, os.O_WRONLY)
    os.write(write_end, b"now")
    os.close(write_end)
    device.run_until(lambda: guest.peer_shut)
    assert guest.received == b"now"


def test_stat_counts_bytes_and_stalls(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    size = fcntl.fcntl(read_end, 1032)
    assert size == MIB  # the device enlarged it
    guest.send(bytes(size + 100_000))
    device.run_until(lambda: not guest.outgoing)
    control.sendall(b"st")
    control.sendall(b"at\nwhat\nstat\n")
    answer = device.answer(control)
    while answer.count(b"\n") < 2:
        answer += device.answer(control)
    assert answer.split(b"\n")[0].startswith(b"STAT rx=%d tx=0 stalls=" % size)
    assert int(answer.split(b"=")[-1]) >= 1
    os.close(read_end)
    os.close(write_end)


def test_an_idle_device_costs_nothing(device: RunningDevice) -> None:
    device.guest.work(0.02)
    before = device.cpu_ticks()
    time.sleep(0.3)
    assert device.cpu_ticks() - before <= 1


def test_a_stalled_reader_costs_nothing_and_holds_nobody_up(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    data = noise.randbytes(4 * MIB)
    guest.send(data)
    device.run_until(lambda: guest.tx - guest.peer_fwd >= 200_000)
    for _ in range(20):
        device.guest.work(0.01)
    before = device.cpu_ticks()
    time.sleep(0.5)
    assert device.cpu_ticks() - before <= 1
    device.still_works()
    reader = Reader(read_end)
    guest.close()
    assert device.answer(control).startswith(b"DRAINED rx=%d tx=0 " % len(data))
    reader.join(5)
    assert reader.hash.digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("end", ["close", "reset", "half"])
def test_the_tail_survives_the_end_of_the_guests_socket(device: RunningDevice, end: str) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    size = MIB + 100_000
    data = noise.randbytes(size)
    guest.send(data)
    device.run_until(lambda: not guest.outgoing)
    if end == "reset":
        guest.emit(header.OP_RST)
    else:
        guest.shutdown(3 if end == "close" else header.SHUT_SEND)
    for _ in range(10):
        device.guest.work(0.01)
    reader = Reader(read_end)
    assert device.answer(control).startswith(b"DRAINED rx=%d tx=0 " % size)
    reader.join(5)
    assert reader.hash.digest() == hashlib.sha256(data).digest()


def test_a_reader_that_leaves_resets_the_guests_writer(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    guest.send(b"seen")
    device.run_until(lambda: os.read(read_end, 10) if not guest.outgoing else None)
    os.close(read_end)
    guest.send(b"unseen")
    device.run_until(lambda: guest.is_reset)
    assert device.answer(control).startswith(b"DRAINED rx=4 tx=0 ")


def test_closing_the_control_socket_changes_nothing(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    control.close()
    guest.send(b"still here")
    guest.close()
    device.run_until(lambda: guest.is_reset)
    assert os.read(read_end, 100) == b"still here"
    assert os.read(read_end, 100) == b""


def test_plain_and_keep_close_the_control_socket_after_ok(device: RunningDevice) -> None:
    for mode in ("", " keep", " other"):
        read_end, write_end = os.pipe()
        control, guest = device.pass_fd(write_end, mode)
        os.close(write_end)
        assert device.answer(control) == b""
        guest.send(b"x")
        guest.close()
        device.run_until(lambda guest=guest: guest.is_reset)
        assert os.read(read_end, 9) == b"x"
        os.close(read_end)


def test_a_socket_is_half_closed_in_both_directions(device: RunningDevice) -> None:
    client, guest = device.connect()
    client.shutdown(socket.SHUT_WR)
    device.run_until(lambda: guest.peer_shut)
    assert guest.peer_shut == header.SHUT_SEND
    guest.send(b"reply after your end")
    guest.shutdown(header.SHUT_SEND)
    assert device.answer(client) == b"reply after your end"
    assert device.answer(client) == b""


def test_a_client_that_leaves_after_its_half_close_is_gone_for_the_guest(device: RunningDevice) -> None:
    client, guest = device.connect()
    client.shutdown(socket.SHUT_WR)
    device.run_until(lambda: guest.peer_shut == header.SHUT_SEND)
    client.close()
    device.run_until(lambda: guest.peer_shut == header.SHUT_BOTH)


def test_regular_files_and_dev_null_are_always_ready(device: RunningDevice, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(noise.randbytes(300_000))
    _, guest = device.pass_fd(os.open(source, os.O_RDONLY))
    device.run_until(lambda: guest.peer_shut)
    assert guest.received == source.read_bytes()
    out = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    control, guest = device.pass_fd(out)
    guest.send(source.read_bytes())
    guest.close()
    assert device.answer(control).startswith(b"DRAINED rx=300000 tx=0 ")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()
    _, guest = device.pass_fd(os.open("/dev/null", os.O_RDONLY))
    device.run_until(lambda: guest.peer_shut)


def test_thirty_streams_at_once(device: RunningDevice) -> None:
    checks: list[Callable[[], object]] = []
    for _ in range(15):
        data = noise.randbytes(MIB)
        digest = hashlib.sha256(data).digest()
        read_end, write_end = os.pipe()
        _, guest = device.pass_fd(write_end)
        os.close(write_end)
        reader = Reader(read_end)
        guest.send(data)
        guest.close()
        checks.append(lambda r=reader, d=digest: not r.is_alive() and r.hash.digest() == d)
        read_end, write_end = os.pipe()
        _, guest = device.pass_fd(read_end)
        os.close(read_end)
        Writer(write_end, data)
        checks.append(lambda g=guest, d=data: g.peer_shut and g.received == d)
    device.run_until(lambda: all(check() for check in checks), 60)


def test_a_guest_connects_to_a_unix_socket_beside_ours(device: RunningDevice) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(device.path + "_5000")
        listener.listen()
        guest = device.guest.connect(40000, 5000)
        device.run_until(lambda: guest.is_open)
        host, _ = listener.accept()
        guest.send(b"hello")
        device.run_until(lambda: not guest.outgoing)
        assert host.recv(10) == b"hello"
        host.close()
        device.run_until(lambda: guest.peer_shut == 3)
    refused = device.guest.connect(40001, 5001)
    device.run_until(lambda: refused.is_reset)


def test_connections_come_and_go_without_a_leak(device: RunningDevice) -> None:
    device.still_works()
    before = device.open_fds()
    for round_ in range(100):
        kind = round_ % 4
        if kind == 0:
            device.still_works()
        elif kind == 1:
            read_end, write_end = os.pipe()
            control, guest = device.pass_fd(write_end)
            os.close(write_end)
            guest.send(b"abc")
            guest.close()
            assert device.answer(control).startswith(b"DRAINED rx=3")
            assert os.read(read_end, 10) == b"abc"
            os.close(read_end)
            control.close()
        elif kind == 2:
            client = device.client()
            client.sendall(b"CONNECT 999\n")
            assert device.answer(client) == b""
            client.close()
        else:
            client, guest = device.connect()
            guest.emit(header.OP_RST)
            assert device.answer(client) == b""
            client.close()
    device.run_until(lambda: device.open_fds() <= before)


def test_a_pause_keeps_connections(device: RunningDevice) -> None:
    client, guest = device.connect()
    bases = [device.guest.stop_ring(0), device.guest.stop_ring(1)]
    assert device.guest.share_memory() == 0
    client.sendall(b"while paused")
    for index, base in enumerate(bases):
        device.guest.start_ring(index, base)
    device.run_until(lambda: guest.received == b"while paused")
    guest.send(b"after")
    assert device.answer(client) == b"after"


def test_a_restart_of_the_guest_drops_connections(device: RunningDevice) -> None:
    client, _ = device.connect()
    device.guest.stop_ring(0)
    device.guest.stop_ring(1)
    device.guest.restart()
    assert device.answer(client) == b""
    device.still_works()


def test_memory_may_be_shared_anew_while_rings_run(device: RunningDevice) -> None:
    client, guest = device.connect()
    for _ in range(3):
        assert device.guest.share_memory() == 0
        client.sendall(b"abc")
        device.run_until(lambda: guest.received.endswith(b"abc") and guest.received.clear() is None)
        guest.send(b"def")
        assert device.answer(client) == b"def"


@pytest.mark.parametrize("split", [2 << 20, (4 << 20) + 5 * 131072])
def test_buffers_may_lie_in_any_region(device: RunningDevice, split: int) -> None:
    """Rings and receive buffers in the smaller region; then also some packets, so that they change all
    the time."""
    assert device.guest.share_memory(split) == 0
    client, guest = device.connect()
    data = noise.randbytes(2 * MIB)
    guest.send(data)
    client.setblocking(True)
    Writer(client.fileno(), data, close=False)
    got = bytearray()

    def transferred() -> bool:
        while select.select([client], [], [], 0)[0]:
            got.extend(client.recv(MIB))
        return len(got) == len(data) == len(guest.received)

    device.run_until(transferred)
    assert got == data == guest.received


def test_ring_indices_wrap(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    reader = Reader(read_end)
    guest.packet_size = 10
    guest.send(bytes(700_000))
    guest.close()
    device.run_until(lambda: not guest.outgoing, 60)
    assert device.answer(control).startswith(b"DRAINED rx=700000")
    reader.join(5)
    assert reader.count == 700_000


@pytest.mark.parametrize("how", ["hang up", "SIGTERM"])
def test_bytes_taken_are_delivered_after_the_end_of_the_vm(device: RunningDevice, how: str) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    data = noise.randbytes(MIB + 100_000)
    guest.send(data)
    device.run_until(lambda: not guest.outgoing)
    if how == "SIGTERM":
        device.process.terminate()
    else:
        device.guest.front.close()
    reader = Reader(read_end)
    assert control.recv(100).startswith(b"DRAINED rx=%d tx=0 " % len(data))
    reader.join(5)
    assert reader.hash.digest() == hashlib.sha256(data).digest()
    assert device.process.wait(5) == 0


def test_what_lies_in_the_ring_of_a_dead_vm_is_still_taken(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    device.run_until(lambda: guest.is_open)
    os.kill(device.process.pid, 19)  # stopped: the packet stays in the ring until the VM is gone
    guest.send(b"last words")
    guest.pump()
    device.guest.front.close()
    os.kill(device.process.pid, 18)
    assert control.recv(100).startswith(b"DRAINED rx=10 tx=0 ")
    assert os.read(read_end, 100) == b"last words"
    assert device.process.wait(5) == 0


def test_a_second_signal_ends_at_once(device: RunningDevice) -> None:
    _read_end, write_end = os.pipe()
    _, guest = device.pass_fd(write_end)
    guest.send(bytes(MIB + 100_000))
    device.run_until(lambda: not guest.outgoing)
    device.process.terminate()
    deadline = time.monotonic() + 5
    while "the device ends" not in device.log.read_text():
        assert time.monotonic() < deadline
    assert device.is_alive()
    assert device.terminate() == 0
    assert "bytes were not delivered" in device.log.read_text()
