"""Guest RAM: the regions that the front end shares, and the only ways into them.

Every address here was chosen by the guest or the front end. `Memory.guest` (guest physical) and
`Memory.host` (the front end's virtual addresses, in which ring addresses are given) return a view of exactly
the bytes asked for, all inside one region, or raise `BadAddress`. Addresses are Python integers, so nothing
wraps; a memoryview would clamp a slice that is too long and count a negative offset from the end, which is
why the check is explicit.

Views keep a mapping alive: a region that goes away while something still looks at it is unmapped later.
"""

from __future__ import annotations

import itertools
import mmap
import os

_LIMIT = 1 << 64


class BadAddress(Exception):
    """Bytes outside guest RAM, or across the border of two regions."""


class Region:
    """`size` bytes of guest RAM: at guest physical `gpa`, at the front end's virtual `uva`, here as
    `view`."""

    __slots__ = ("gpa", "gpa_end", "size", "uva", "uva_end", "view")

    def __init__(self, gpa: int, size: int, uva: int, view: memoryview) -> None:
        if size <= 0 or gpa + size > _LIMIT or uva + size > _LIMIT or len(view) != size:
            raise BadAddress(f"region of {size:#x} bytes at {gpa:#x}/{uva:#x}")
        self.gpa, self.size, self.uva, self.view = gpa, size, uva, view
        self.gpa_end, self.uva_end = gpa + size, uva + size


def map_region(gpa: int, size: int, uva: int, offset: int, fd: int) -> Region:
    """Map a region from `fd`, which stays the caller's. Raises `BadAddress`, also when the file is too short:
    touching a page beyond its end would kill the process."""
    if size <= 0 or os.fstat(fd).st_size < offset + size:
        raise BadAddress(f"region of {size:#x} bytes at {offset:#x} is not in its file")
    base = offset & ~(mmap.ALLOCATIONGRANULARITY - 1)
    shift = offset - base
    try:
        mapped = mmap.mmap(fd, size + shift, offset=base)
    except (OSError, ValueError, OverflowError) as error:
        raise BadAddress(f"cannot map {size:#x} bytes at {offset:#x}: {error}") from error
    return Region(gpa, size, uva, memoryview(mapped)[shift:])


class Memory:
    """All RAM of one guest. `largest` is the region for fast paths (None when there is no RAM yet)."""

    __slots__ = ("largest", "regions")

    def __init__(self, regions: list[Region]) -> None:
        ordered = sorted(regions, key=lambda region: region.gpa)
        for low, high in itertools.pairwise(ordered):
            if low.gpa_end > high.gpa:
                raise BadAddress(f"regions overlap at {high.gpa:#x}")
        self.regions = ordered
        self.largest = max(ordered, key=lambda region: region.size, default=None)

    def region_at(self, gpa: int) -> Region | None:
        """The region that holds guest physical address `gpa`."""
        for region in self.regions:
            if region.gpa <= gpa < region.gpa_end:
                return region
        return None

    def guest(self, gpa: int, length: int) -> memoryview:
        """`length` bytes at guest physical address `gpa`."""
        for region in self.regions:
            if region.gpa <= gpa and gpa + length <= region.gpa_end and length >= 0:
                start = gpa - region.gpa
                return region.view[start : start + length]
        raise BadAddress(f"{length:#x} bytes at guest address {gpa:#x}")

    def host(self, uva: int, length: int) -> memoryview:
        """`length` bytes at the front end's virtual address `uva`."""
        for region in self.regions:
            if region.uva <= uva and uva + length <= region.uva_end and length >= 0:
                start = uva - region.uva
                return region.view[start : start + length]
        raise BadAddress(f"{length:#x} bytes at front end address {uva:#x}")
