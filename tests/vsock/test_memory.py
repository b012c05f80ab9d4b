from __future__ import annotations

import os

import pytest

from shim.vsock.memory import BadAddress, Memory, Region, map_region

TOP = 1 << 64


def region(gpa: int = 0x1000, size: int = 0x1000, uva: int = 0x7F0000) -> Region:
    return Region(gpa, size, uva, memoryview(bytearray(size)))


def test_a_view_is_exactly_what_was_asked_for() -> None:
    memory = Memory([region()])
    memory.guest(0x1FFF, 1)[0] = 7
    assert bytes(memory.host(0x7F0FFE, 2)) == b"\0\7"
    assert len(memory.guest(0x1000, 0x1000)) == 0x1000


@pytest.mark.parametrize(
    ("gpa", "length"),
    [
        (0xFFF, 1),
        (0x1FFF, 2),
        (0x2000, 1),
        (0x1000, 0x1001),
        (0, 0xFFFFFFFF),
        (TOP - 1, 2),
        (TOP - 1, 0xFFFFFFFF),
        (0x1000, -1),
    ],
)
def test_nothing_outside_is_ever_seen(gpa: int, length: int) -> None:
    memory = Memory([region()])
    with pytest.raises(BadAddress):
        memory.guest(gpa, length)
    with pytest.raises(BadAddress):
        memory.host(gpa - 0x1000 + 0x7F0000, length)


def test_a_range_across_two_regions_is_refused_even_if_they_touch() -> None:
    memory = Memory([region(), region(gpa=0x2000, uva=0x800000)])
    with pytest.raises(BadAddress):
        memory.guest(0x1FFF, 2)


def test_there_is_nothing_in_no_memory() -> None:
    assert Memory([]).largest is None
    with pytest.raises(BadAddress):
        Memory([]).guest(0, 1)


@pytest.mark.parametrize(("gpa", "size", "uva"), [(0, 0, 0), (TOP - 1, 2, 0), (0, 2, TOP - 1)])
def test_a_region_that_wraps_or_is_empty_is_refused(gpa: int, size: int, uva: int) -> None:
    with pytest.raises(BadAddress):
        Region(gpa, size, uva, memoryview(bytearray(size)))


def test_regions_do_not_overlap() -> None:
    with pytest.raises(BadAddress):
        Memory([region(), region(gpa=0x1FFF)])


def test_a_file_shorter_than_its_region_is_refused() -> None:
    fd = os.memfd_create("ram")
    try:
        os.ftruncate(fd, 0x3000)
        mapped = map_region(0, 0x1800, 0x1000, 0x1800, fd)
        mapped.view[0] = 9
        assert os.pread(fd, 1, 0x1800) == b"\x09"
        for size, offset in [(0x3001, 0), (0x1000, 0x2001), (0, 0), (1 << 63, 0), (1, 1 << 63)]:
            with pytest.raises(BadAddress):
                map_region(0, size, 0, offset, fd)
    finally:
        os.close(fd)
