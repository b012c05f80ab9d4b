"""A stream that its owner gives up (`close` on its control connection), in the real program."""

from __future__ import annotations

import os
import select

from tests.vsock.device import RunningDevice


def test_a_stream_that_is_given_up_ends_for_guest_and_reader(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    guest.send(b"so far")
    device.run_until(lambda: os.fstat(read_end) and _readable(read_end))
    control.sendall(b"close\n")
    assert device.answer(control).startswith(b"DRAINED rx=6 tx=0 ")
    assert control.recv(1) == b""
    assert os.read(read_end, 100) == b"so far"
    assert os.read(read_end, 100) == b""
    os.close(read_end)
    device.run_until(lambda: guest.is_reset)
    device.still_works()


def test_what_the_device_holds_still_goes_to_a_slow_reader(device: RunningDevice) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    control, guest = device.pass_fd(write_end)
    os.close(write_end)
    guest.send(b"x" * (4 << 20))  # more than pipe and device take
    total = 0
    control.sendall(b"stat\n")
    device.answer(control)
    control.sendall(b"close\nclose\nstat\n")
    device.run_until(lambda: guest.is_reset)
    answers = b""

    def drained() -> bool:
        nonlocal total, answers
        while _readable(read_end):
            data = os.read(read_end, 1 << 20)
            total += len(data)
            if not data:
                return True
        return False

    device.run_until(drained)
    while data := device.answer(control):
        answers += data
    os.close(read_end)
    assert answers.splitlines()[-1].startswith(b"DRAINED rx=%d tx=0 " % total)
    device.still_works()


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])
