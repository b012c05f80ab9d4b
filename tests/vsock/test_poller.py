from __future__ import annotations

import os

import pytest

from shim.vsock.poller import Poller


def test_an_event_of_a_closed_descriptor_does_not_reach_the_next_one_with_its_number() -> None:
    poller = Poller()
    pipes = [os.pipe(), os.pipe()]
    seen: list[str] = []
    reused: list[int] = []

    def first(_events: int) -> None:
        seen.append("first")
        for read_end, _ in pipes:
            poller.remove(read_end)
            os.close(read_end)
        for _ in pipes:  # the numbers just freed come back
            fd, writer = os.pipe()
            poller.add(fd, lambda _: seen.append("new"))
            reused.extend((fd, writer))

    for read_end, write_end in pipes:
        poller.add(read_end, first)
        os.write(write_end, b"x")
    poller.poll(1)
    assert seen == ["first"]
    os.write(reused[1], b"x")
    poller.poll(1)
    assert seen == ["first", "new"]
    for fd in {*reused, *(write_end for _, write_end in pipes)}:
        os.close(fd)


def test_things_that_are_always_ready_are_not_polled(tmp_path: object) -> None:
    poller = Poller()
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(PermissionError):
        poller.add(fd, lambda _: None)
    poller.remove(fd)
    os.close(fd)
