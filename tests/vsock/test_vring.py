from __future__ import annotations

import contextlib
import random
import struct

import pytest

from shim.vsock.memory import BadAddress, Memory, Region
from shim.vsock.vring import Ring, RingFault, gather

NEXT, WRITE, INDIRECT = 1, 2, 4
GPA, UVA, SIZE = 0x10000, 0x7F0000000000, 8
RAM = 0x10000


class Fixture:
    """A ring of 8 descriptors at the start of 64 KiB of guest RAM."""

    def __init__(self) -> None:
        self.ram = bytearray(RAM)
        self.memory = Memory([Region(GPA, RAM, UVA, memoryview(self.ram))])
        self.ring = Ring(0)
        self.ring.size = SIZE
        self.ring.where = (UVA, UVA + 512, UVA + 256)
        self.ring.map(self.memory)

    def describe(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.ram, 16 * index, address, length, flags, following)

    def entry(self, at: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        struct.pack_into("<QIHH", self.ram, at, address, length, flags, following)

    def segments(self, head: int = 0, writable: bool = False) -> list[memoryview]:
        return self.ring.segments(head, self.memory, writable=writable)


@pytest.fixture
def ring() -> Fixture:
    return Fixture()


def test_a_chain_is_followed_in_order(ring: Fixture) -> None:
    ring.ram[0x1000:0x1006] = b"abcdef"
    ring.describe(3, GPA + 0x1000, 2, NEXT, 1)
    ring.describe(1, GPA + 0x1002, 3, NEXT, 7)
    ring.describe(7, GPA + 0x1005, 1)
    assert gather(ring.segments(3), 100) == b"abcdef"
    assert gather(ring.segments(3), 4) == b"abcd"


def test_an_indirect_table_is_followed_also_after_direct_descriptors(ring: Fixture) -> None:
    ring.ram[0x1000:0x1004] = b"wxyz"
    ring.describe(0, GPA + 0x1000, 1, NEXT, 2)
    ring.describe(2, GPA + 0x2000, 32, INDIRECT)
    ring.entry(0x2000, GPA + 0x1001, 1, NEXT, 1)
    ring.entry(0x2010, GPA + 0x1002, 2)
    assert gather(ring.segments(), 100) == b"wxyz"


@pytest.mark.parametrize("flags", [WRITE, WRITE | NEXT])
def test_a_descriptor_for_the_other_direction_is_a_fault(ring: Fixture, flags: int) -> None:
    ring.describe(0, GPA + 0x1000, 4, flags, 0)
    with pytest.raises(RingFault):
        ring.segments(writable=False)
    ring.describe(0, GPA + 0x1000, 4, flags & ~WRITE, 0)
    with pytest.raises(RingFault):
        ring.segments(writable=True)


def test_a_loop_is_a_fault(ring: Fixture) -> None:
    ring.describe(0, GPA + 0x1000, 4, NEXT, 1)
    ring.describe(1, GPA + 0x1000, 4, NEXT, 0)
    with pytest.raises(RingFault):
        ring.segments()


def test_a_loop_in_an_indirect_table_is_a_fault(ring: Fixture) -> None:
    ring.describe(0, GPA + 0x2000, 16, INDIRECT)
    ring.entry(0x2000, GPA + 0x1000, 4, NEXT, 0)
    with pytest.raises(RingFault):
        ring.segments()


@pytest.mark.parametrize(("length", "fits"), [(SIZE, True), (SIZE + 1, False), (2000, False)])
def test_a_chain_in_an_indirect_table_is_no_longer_than_the_queue(
    ring: Fixture, length: int, fits: bool
) -> None:
    ring.describe(0, GPA + 0x2000, 16 * 2048, INDIRECT)
    for index in range(length):
        ring.entry(0x2000 + 16 * index, GPA + 0x1000, 1, NEXT if index < length - 1 else 0, index + 1)
    if fits:
        assert len(ring.segments()) == length
    else:
        with pytest.raises(RingFault):
            ring.segments()


@pytest.mark.parametrize("length", [0, 15, 17, 0xFFFFFFF0])
def test_an_indirect_table_of_a_bad_size_is_a_fault(ring: Fixture, length: int) -> None:
    ring.describe(0, GPA + 0x2000, length, INDIRECT)
    with pytest.raises((RingFault, BadAddress)):
        ring.segments()


def test_nested_tables_and_tables_with_a_next_are_faults(ring: Fixture) -> None:
    ring.describe(0, GPA + 0x2000, 32, INDIRECT)
    ring.entry(0x2000, GPA + 0x2000, 32, INDIRECT)
    with pytest.raises(RingFault):
        ring.segments()
    ring.describe(0, GPA + 0x2000, 32, INDIRECT | NEXT, 1)
    with pytest.raises(RingFault):
        ring.segments()


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (GPA + RAM, 1),
        (GPA - 1, 1),
        (GPA, RAM + 1),
        (GPA, 0xFFFFFFFF),
        ((1 << 64) - 1, 0xFFFFFFFF),
        (0, 4),
        (GPA, 0),
    ],
)
def test_memory_outside_ram_and_empty_descriptors_are_refused(
    ring: Fixture, address: int, length: int
) -> None:
    ring.describe(0, address, length)
    with pytest.raises((BadAddress, RingFault)):
        ring.segments()
    ring.describe(0, GPA + 0x2000, 16, INDIRECT)
    ring.entry(0x2000, address, length)
    with pytest.raises((BadAddress, RingFault)):
        ring.segments()


@pytest.mark.parametrize("head", [SIZE, 0xFFFF])
def test_a_head_or_next_out_of_range_is_a_fault(ring: Fixture, head: int) -> None:
    with pytest.raises(RingFault):
        ring.segments(head)
    ring.describe(0, GPA, 4, NEXT, head)
    with pytest.raises(RingFault):
        ring.segments(0)


def test_an_available_index_that_jumps_is_a_fault(ring: Fixture) -> None:
    ring.ring.next_avail = 0xFFFE
    ring.ring.avail[1] = 6  # 8 ahead, wrapped: all descriptors at once
    assert ring.ring.end() == 6
    for index in (7, 0xFFFD):
        ring.ring.avail[1] = index
        with pytest.raises(RingFault):
            ring.ring.end()


@pytest.mark.parametrize(
    "where",
    [
        (UVA + 8, UVA + 512, UVA + 256),
        (UVA, UVA + 514, UVA + 256),
        (UVA, UVA + 512, UVA + 257),
        (UVA + RAM - 16, UVA + 512, UVA + 256),
        (UVA, UVA + RAM - 4, UVA + 256),
        (UVA, UVA + 512, UVA + RAM - 4),
        (0, 0, 0),
        ((1 << 64) - 16, UVA + 512, UVA + 256),
    ],
)
def test_a_ring_outside_ram_or_not_aligned_is_refused(ring: Fixture, where: tuple[int, int, int]) -> None:
    ring.ring.where = where
    with pytest.raises((BadAddress, RingFault)):
        ring.ring.map(ring.memory)
    assert not ring.ring.is_mapped()


@pytest.mark.parametrize(
    ("signalled", "used", "event", "wanted"),
    [(0, 1, 0, True), (0, 1, 1, False), (0, 5, 3, True), (0xFFFE, 1, 0xFFFF, True), (0xFFFE, 1, 1, False)],
)
def test_interrupts_follow_the_drivers_event_index(
    ring: Fixture, signalled: int, used: int, event: int, wanted: bool
) -> None:
    ring.ring.signalled, ring.ring.used_index = signalled, used
    ring.ring.avail[2 + SIZE] = event
    assert ring.ring.should_signal(event_idx=True) is wanted
    assert ring.ring.signalled == used


def test_without_event_index_the_flag_decides(ring: Fixture) -> None:
    assert ring.ring.should_signal(event_idx=False)
    ring.ring.avail[0] = 1
    assert not ring.ring.should_signal(event_idx=False)


def test_a_ring_knows_whether_it_goes_on_where_it_was_stopped(ring: Fixture) -> None:
    assert ring.ring.start()
    ring.ring.resume = (0, 0)
    assert ring.ring.start()
    ring.ring.resume = (5, 5)
    assert not ring.ring.start()


def test_random_tables_raise_nothing_but_faults_and_give_only_ram() -> None:
    random_ = random.Random(5)
    ring = Fixture()
    for _ in range(5000):
        for index in range(SIZE):
            address = random_.choice([GPA + random_.randrange(RAM), random_.getrandbits(64), GPA + 0x2000])
            length = random_.choice([0, 16, 32, 44, 4096, random_.getrandbits(32)])
            ring.describe(index, address, length, random_.randrange(8), random_.randrange(10))
        ring.ram[0x2000:0x2040] = random_.randbytes(64)
        with contextlib.suppress(RingFault, BadAddress):
            segments = ring.segments(random_.randrange(10), writable=random_.random() < 0.5)
            assert all(0 < len(segment) <= RAM for segment in segments)
            assert len(segments) <= SIZE
