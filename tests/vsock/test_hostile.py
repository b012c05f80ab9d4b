"""The real program against a guest, a front end and clients that break the rules."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.vsock import header
from shim.vsock.vhost_user import Request
from tests.fakes.guest_driver import GPA, RAM, RX, SIZE, TX, TX_BASE, GuestDriver
from tests.vsock.device import RunningDevice

NEXT, WRITE, INDIRECT = 1, 2, 4
MIB = 1 << 20


# ---- packets: the connection pays, nobody else ---------------------------------------------------------


@pytest.mark.parametrize(
    "packet",
    [
        {"op": header.OP_RW, "payload": b"x", "length": 2},
        {"op": header.OP_RW, "payload": b"x", "length": 0xFFFFFFFF},
        {"op": header.OP_RW, "length": 1},
        {"op": header.OP_RW, "payload": b"x", "fwd": 12345},
        {"op": header.OP_CREDIT_UPDATE, "fwd": 1},
        {"op": header.OP_REQUEST},
        {"op": header.OP_RESPONSE},
        {"op": 0},
        {"op": 8},
        {"op": 0xFFFF},
        {"op": header.OP_RW, "kind": 2, "payload": b"x"},
        {"op": header.OP_SHUTDOWN, "kind": 0},
    ],
    ids=str,
)
def test_a_bad_packet_resets_its_connection_alone(device: RunningDevice, packet: dict[str, int]) -> None:
    other, other_guest = device.connect()
    client, guest = device.connect()
    device.guest.send(guest.port, guest.host_port, **packet)  # type: ignore[arg-type]
    device.run_until(lambda: guest.is_reset)
    assert device.answer(client) == b""
    other_guest.send(b"untouched")
    assert device.answer(other) == b"untouched"
    device.still_works()


def test_data_after_the_guests_own_shutdown_resets(device: RunningDevice) -> None:
    client, guest = device.connect()
    guest.emit(header.OP_SHUTDOWN, flags=header.SHUT_SEND)
    assert device.answer(client) == b""
    guest.emit(header.OP_RW, b"late")
    device.run_until(lambda: guest.is_reset)


def test_data_into_a_stream_that_only_gives_resets(device: RunningDevice, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in")
    fd = os.open(tmp_path / "in", os.O_RDWR)
    control, guest = device.pass_fd(fd)
    guest.emit(header.OP_RW, b"into the wrong end")
    device.run_until(lambda: guest.is_reset)
    assert device.answer(control).startswith(b"DRAINED rx=0 tx=0 ")


@pytest.mark.parametrize("cids", [{"src_cid": 4}, {"src_cid": 2}, {"dst_cid": 3}, {"dst_cid": 1 << 63}])
def test_a_packet_with_another_cid_is_dropped(device: RunningDevice, cids: dict[str, int]) -> None:
    client, guest = device.connect()
    device.guest.send(guest.port, guest.host_port, header.OP_RST, **cids)  # type: ignore[arg-type]
    guest.send(b"still open")
    assert device.answer(client) == b"still open"


def test_more_data_than_credit_resets_but_what_came_is_delivered(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    for _ in range(21):  # the pipe takes 16, the device 4
        device.guest.send(guest.port, guest.host_port, header.OP_RW, bytes(65536))
    device.run_until(lambda: guest.is_reset)
    count = 0
    while data := os.read(read_end, MIB):
        count += len(data)
    assert count == 20 * 65536
    assert device.answer(control).startswith(b"DRAINED rx=%d tx=0 " % count)


def test_a_guest_without_credit_gets_nothing_and_costs_nothing(device: RunningDevice) -> None:
    client, guest = device.connect()
    device.guest.send(guest.port, guest.host_port, header.OP_CREDIT_UPDATE, alloc=0)
    client.sendall(bytes(1000))
    for _ in range(10):
        device.guest.work(0.01)
    assert not guest.received
    before = device.cpu_ticks()
    time.sleep(0.3)
    assert device.cpu_ticks() - before <= 1
    guest.emit(header.OP_CREDIT_UPDATE)
    device.run_until(lambda: len(guest.received) == 1000)


def test_a_huge_claim_of_credit_is_believed_only_as_far_as_buffers_go(device: RunningDevice) -> None:
    client, guest = device.connect()
    device.guest.send(guest.port, guest.host_port, header.OP_CREDIT_UPDATE, alloc=0xFFFFFFFF)
    client.sendall(bytes(100_000))
    device.run_until(lambda: len(guest.received) == 100_000)


def test_a_flood_of_requests_and_strays_is_answered_and_bounded(device: RunningDevice) -> None:
    device.guest.keep_packets = True
    fds = device.open_fds()
    for port in range(3000):
        device.guest.send(port, port, header.OP_REQUEST if port % 2 else header.OP_CREDIT_REQUEST)
    resets = device.guest.packets
    device.run_until(lambda: sum(packet.op == header.OP_RST for packet in resets) == 3000)
    assert device.open_fds() <= fds
    device.still_works()


def test_a_guest_that_takes_no_replies_is_left_alone(device: RunningDevice) -> None:
    """The device stops taking packets instead of piling up answers, and goes on when replies are taken."""
    sent = 0
    guest = device.guest
    for _ in range(200):  # answers use up all receive buffers, which are not given back
        for slot in list(guest.free):
            guest.free.remove(slot)
            at = TX_BASE + slot * 131072
            header.FIELDS.pack_into(guest.ram, at, 3, 2, sent, sent, 0, 1, header.OP_RW, 0, 0, 0)
            guest.tx.describe(4 * slot, GPA + at, 44, 0)
            guest.tx.post(4 * slot)
            sent += 1
        guest.tx.notify()
        select.select([guest.tx.call], [], [], 0.02)
        guest.free += [head // 4 for head, _ in guest.tx.collect()]
    assert sent < 1000
    before = device.cpu_ticks()
    time.sleep(0.3)
    assert device.cpu_ticks() - before <= 1
    device.still_works()


def test_connections_are_limited(device: RunningDevice) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(device.path + "_7")
        listener.listen(2000)
        sockets = [device.guest.connect(port, 7) for port in range(1100)]
        device.run_until(lambda: all(sock.is_open or sock.is_reset for sock in sockets))
        assert sum(sock.is_open for sock in sockets) == 1023
        client = device.client()
        client.sendall(b"CONNECT 1027\n")
        assert device.answer(client) == b""


# ---- rings: the device stops, the process lives ----------------------------------------------------------


def bad_head(guest: GuestDriver) -> None:
    guest.tx.post(SIZE)


def bad_index(guest: GuestDriver) -> None:
    guest.tx.avail[1] = (guest.tx.next + SIZE + 1) & 0xFFFF


def loop(guest: GuestDriver) -> None:
    guest.tx.describe(0, GPA + TX_BASE, 10, NEXT, 1)
    guest.tx.describe(1, GPA + TX_BASE, 10, NEXT, 0)
    guest.tx.post(0)


def outside(guest: GuestDriver) -> None:
    guest.tx.describe(0, GPA + RAM - 10, 44, 0)
    guest.tx.post(0)


def wrapping(guest: GuestDriver) -> None:
    guest.tx.describe(0, (1 << 64) - 20, 44, 0)
    guest.tx.post(0)


def huge(guest: GuestDriver) -> None:
    guest.tx.describe(0, GPA + TX_BASE, 0xFFFFFFFF, 0)
    guest.tx.post(0)


def empty(guest: GuestDriver) -> None:
    guest.tx.describe(0, GPA + TX_BASE, 0, 0)
    guest.tx.post(0)


def writable(guest: GuestDriver) -> None:
    guest.tx.describe(0, GPA + TX_BASE, 44, WRITE)
    guest.tx.post(0)


def table_outside(guest: GuestDriver) -> None:
    guest.tx.describe(0, GPA + RAM - 16, 32, INDIRECT)
    guest.tx.post(0)


def payload_outside(guest: GuestDriver) -> None:
    header.FIELDS.pack_into(guest.ram, TX_BASE, 3, 2, 1, 1, 100, 1, header.OP_RW, 0, 0, 0)
    guest.tx.describe(0, GPA + TX_BASE, 44, NEXT, 1)
    guest.tx.describe(1, GPA + RAM - 50, 100, 0)
    guest.tx.post(0)


def rx_not_writable(guest: GuestDriver) -> None:
    guest.rx.describe(126, GPA + TX_BASE, 4096, 0)
    for _ in range(SIZE // 2):
        guest.rx.post(126)


def rx_too_small(guest: GuestDriver) -> None:
    guest.rx.describe(126, GPA + TX_BASE, 44, WRITE)
    for _ in range(SIZE // 2):
        guest.rx.post(126)


def rx_outside(guest: GuestDriver) -> None:
    guest.rx.describe(126, GPA + RAM - 100, 4096, WRITE)
    for _ in range(SIZE // 2):
        guest.rx.post(126)


@pytest.mark.parametrize(
    "attack",
    [
        *(
            bad_head,
            bad_index,
            loop,
            outside,
            wrapping,
            huge,
            empty,
            writable,
            table_outside,
            payload_outside,
        ),
        *(rx_not_writable, rx_too_small, rx_outside),
    ],
)
def test_a_broken_ring_stops_the_device_until_the_driver_starts_anew(
    device: RunningDevice, attack: Callable[[GuestDriver], None]
) -> None:
    client, guest = device.connect()
    attack(device.guest)
    device.guest.tx.notify()
    device.guest.rx.notify()
    client.setblocking(False)
    for _ in range(200):  # host data uses up good receive buffers until the bad ones come
        try:
            client.send(bytes(65536))
        except BlockingIOError:
            pass
        except OSError:
            break
        guest.unread = 0
        select.select([client], [], [], 0.01)
        if select.select([client], [], [], 0)[0]:
            break
    client.settimeout(5)
    with contextlib.suppress(ConnectionResetError):
        assert client.recv(10) == b""
    log = device.log.read_text()
    assert log.count("the guest broke a ring") == 1
    assert device.is_alive()
    device.guest.stop_ring(RX)
    device.guest.stop_ring(TX)
    device.guest.restart()
    device.still_works()


def test_random_rings_and_headers_never_end_the_process(device: RunningDevice) -> None:
    random_ = random.Random(11)
    guest = device.guest
    for round_ in range(150):
        for ring in guest.rings:
            for index in range(SIZE):
                address = random_.choice(
                    [
                        GPA + TX_BASE + random_.randrange(65536),
                        GPA + random_.randrange(RAM),
                        random_.getrandbits(64),
                    ]
                    if round_ % 3
                    else [GPA + TX_BASE + 128 * index]
                )
                flags = random_.randrange(8) if round_ % 3 else (WRITE if ring is guest.rx else 0)
                length = random_.choice([0, 16, 32, 44, 100, 4096, random_.getrandbits(32)])
                ring.describe(
                    index, address, length if round_ % 3 else 128, flags, random_.randrange(SIZE + 2)
                )
        for index in range(SIZE):
            fields = [
                *(3, 2, random_.randrange(4), random_.choice([1 << 30, 5, 1027])),
                *(random_.choice([0, 1, 84, random_.getrandbits(32)]), random_.choice([1, 1, 1, 2])),
                *(random_.randrange(9), random_.randrange(4)),
                *(
                    random_.choice([0, 262144, random_.getrandbits(32)]),
                    random_.choice([0, random_.getrandbits(32)]),
                ),
            ]
            header.FIELDS.pack_into(guest.ram, TX_BASE + 128 * index, *fields)
        for ring in guest.rings:
            for _ in range(random_.randrange(1, SIZE)):
                ring.post(random_.randrange(SIZE if round_ % 3 == 0 else SIZE + 1))
            ring.notify()
        client = device.client()
        client.sendall(b"CONNECT 1\n" if round_ % 2 else random_.randbytes(40))
        device.clients.pop().close()
        # an answer to a request of the front end: everything before it has been seen
        for index in (RX, TX):
            guest.stop_ring(index)
        for ring in guest.rings:
            ring.next = ring.avail[1] = ring.used[1] = 0
        guest.start_ring(RX)
        guest.start_ring(TX)
        assert device.is_alive()
    guest.stop_ring(RX)
    guest.stop_ring(TX)
    guest.restart()
    device.still_works()


# ---- the front end ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 12,
        struct.pack("<III", 1, 1, 1 << 20),
        struct.pack("<III", Request.SET_MEM_TABLE, 1, 8) + b"\xff" * 8,
        struct.pack("<III", Request.SET_VRING_KICK, 1, 8) + bytes(8),
        struct.pack("<III", 1, 1, 0)[:5],
        random.Random(2).randbytes(500),
    ],
)
def test_a_front_end_that_talks_nonsense_ends_the_device_with_a_message(tmp_path: Path, data: bytes) -> None:
    device = RunningDevice(tmp_path)
    device.guest.front.sendall(data)
    device.guest.front.shutdown(socket.SHUT_WR)
    assert device.process.wait(10) == 1
    assert "the front end broke the protocol" in device.log.read_text()
    device.close()


def test_rings_the_device_cannot_reach_are_refused(tmp_path: Path) -> None:
    device = RunningDevice(tmp_path)
    guest = device.guest
    guest.negotiate()
    guest.request(Request.SET_VRING_NUM, struct.pack("<II", 0, SIZE))
    body = struct.pack("<IIQQQQ", 0, 0, 0x1000, 0x2000, 0x3000, 0)
    guest.request(Request.SET_VRING_ADDR, body, ack=True)
    assert guest.answer() == struct.pack("<Q", 1)
    assert guest.share_memory() == 0
    guest.restart()
    device.still_works()
    device.close()


# ---- clients -----------------------------------------------------------------------------------------------


def test_a_line_in_pieces_and_bytes_behind_it(device: RunningDevice) -> None:
    client = device.client()
    for byte in b"CONNECT 1027":
        client.sendall(bytes([byte]))
        device.guest.work(0.002)
    client.sendall(b"\nfirst bytes")
    line = device.answer(client)
    guest = device.guest_end(int(line.split()[1]))
    device.run_until(lambda: guest.received == b"first bytes")


@pytest.mark.parametrize("together", [True, False])
def test_a_passfd_in_one_message_or_with_a_line_end(device: RunningDevice, together: bool) -> None:
    read_end, write_end = os.pipe()
    client = device.client()
    if together:
        socket.send_fds(client, [b"passfd\n1027 stream"], [write_end])
    else:
        client.sendall(b"PassFD\n")
        client.sendall(b"1027 ")
        device.guest.work(0.01)
        socket.send_fds(client, [b"stream\n"], [write_end])
    os.close(write_end)
    line = device.answer(client)
    guest = device.guest_end(int(line.split()[1]))
    guest.send(b"x")
    guest.close()
    assert device.answer(client).startswith(b"DRAINED rx=1 tx=0 ")
    assert os.read(read_end, 10) == b"x"


@pytest.mark.parametrize("count", [0, 2, 5, 20])
def test_a_passfd_without_exactly_one_descriptor_is_refused_and_leaks_nothing(
    device: RunningDevice, count: int
) -> None:
    device.still_works()
    before = device.open_fds()
    client = device.client()
    client.sendall(b"passfd\n")
    fds = [os.open("/dev/null", os.O_WRONLY) for _ in range(count)]
    socket.send_fds(client, [b"1027 stream"], fds)
    if count == 0:
        client.shutdown(socket.SHUT_WR)
    assert device.answer(client) == b""
    for fd in fds:
        os.close(fd)
    assert device.open_fds() <= before


@pytest.mark.parametrize("line", [b"GET / HTTP/1.0\r\n", b"CONNECT x\n", b"a" * 100, b"\n", b"passfd 1\n"])
def test_a_bad_line_closes_the_socket(device: RunningDevice, line: bytes) -> None:
    client = device.client()
    client.sendall(line)
    assert device.answer(client) == b""
    device.still_works()


def test_clients_that_say_nothing_cost_nothing_and_are_limited(device: RunningDevice) -> None:
    before = device.open_fds()
    clients = [device.client() for _ in range(200)]
    clients[0].sendall(b"CONN")
    device.run_until(lambda: device.open_fds() == before + 128)
    ticks = device.cpu_ticks()
    time.sleep(0.3)
    assert device.cpu_ticks() - ticks <= 1
    for client in clients:
        client.close()
    device.still_works()


def test_a_client_that_leaves_before_the_answer_frees_everything(device: RunningDevice) -> None:
    device.still_works()
    before = device.open_fds()
    device.guest.listening[9] = lambda _: None
    client = device.client()
    client.sendall(b"passfd\n")
    read_end, write_end = os.pipe()
    socket.send_fds(client, [b"9 stream"], [write_end])
    client.close()
    device.run_until(lambda: device.open_fds() <= before)
    os.close(write_end)
    device.run_until(lambda: os.read(read_end, 1) == b"")
    device.still_works()


@pytest.mark.parametrize("words", [b"eof eof eof\n" * 50, b"\0\xff\n\n\n", b"x" * 5000, b"stat\n" * 2000])
def test_nonsense_on_the_control_socket_does_not_hurt_the_stream(device: RunningDevice, words: bytes) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    with contextlib.suppress(BrokenPipeError):
        control.sendall(words)
    device.guest.work(0.05)
    guest.send(b"fine")
    guest.close()
    device.run_until(lambda: guest.is_reset)
    assert os.read(read_end, 10) == b"fine"
    assert os.read(read_end, 10) == b""
