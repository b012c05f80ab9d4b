"""The device program against clients that are not ours: the order of calls and the bytes are theirs.

runtime-rs (Kata): `connect <port>` in lower case for the agent; for each stream `passfd`, then the bare port beside
the descriptor, and it closes its socket as soon as it has read the OK line. Its FIFOs have keepers.
Firecracker's clients (Kata's Go runtime, kata-ctl, agent-ctl): `CONNECT <port>`, and they look for a leading "OK".
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from shim.vsock import header
from tests.fakes.guest_driver import GuestSocket
from tests.vsock.device import RunningDevice
from tests.vsock.test_program import Reader, Writer

noise = random.Random(11)
NONBLOCK = os.O_NONBLOCK | os.O_CLOEXEC


class RuntimeRs:
    """One process's stdio as runtime-rs sets it up; `containerd` opens and closes the other ends."""

    def __init__(self, device: RunningDevice, folder: Path, stack: ExitStack) -> None:
        self._device, self._folder, self._stack = device, folder, stack
        for name in ("stdin", "stdout", "stderr"):
            os.mkfifo(folder / name)
        # Keepers first, then stdin, stdout, stderr one after the other, the keeper of stdin last.
        for name in ("stdout", "stderr"):
            self._open(name, os.O_RDONLY)
        self.stdin = self._pass("stdin", os.O_RDONLY)
        self.stdout = self._pass("stdout", os.O_WRONLY)
        self.stderr = self._pass("stderr", os.O_WRONLY)
        self._stdin_keeper = os.open(folder / "stdin", os.O_WRONLY | NONBLOCK)

    def _open(self, name: str, mode: int) -> None:
        self._stack.callback(os.close, os.open(self._folder / name, mode | NONBLOCK))

    def _pass(self, name: str, mode: int) -> GuestSocket:
        fd = os.open(self._folder / name, mode | NONBLOCK)
        client = self._device.client()
        client.sendall(b"passfd\n")
        socket.send_fds(client, [b"1027"], [fd])
        line = self._device.answer(client)
        client.close()
        os.close(fd)
        assert line.startswith(b"OK ")
        assert line.endswith(b"\n")
        return self._device.guest_end(int(line[3:]))

    def containerd(self, name: str) -> int:
        """containerd's own open of a FIFO, which may come late and more than once."""
        return os.open(self._folder / name, os.O_WRONLY if name == "stdin" else os.O_RDONLY | NONBLOCK)

    def close_io(self) -> None:
        os.close(self._stdin_keeper)


@pytest.fixture
def runtime(device: RunningDevice, tmp_path: Path) -> Iterator[RuntimeRs]:
    with ExitStack() as stack:
        yield RuntimeRs(device, tmp_path, stack)


def test_runtime_rs_output_is_whole_though_containerd_comes_late(
    device: RunningDevice, runtime: RuntimeRs
) -> None:
    data, errors = noise.randbytes(3_000_000), noise.randbytes(70_000)
    runtime.stdout.send(data)
    runtime.stderr.send(errors)
    for stream in (runtime.stdout, runtime.stderr):
        stream.close()
    device.guest.work(0.01)
    readers = [Reader(runtime.containerd(name)) for name in ("stdout", "stderr")]
    device.run_until(lambda: runtime.stdout.is_reset and runtime.stderr.is_reset)
    for reader, sent in zip(readers, (data, errors), strict=True):
        reader.join(5)
        assert not reader.is_alive(), "no end of file although all writers are gone"
        assert reader.hash.digest() == hashlib.sha256(sent).digest()


def test_runtime_rs_input_survives_a_detach_and_ends_with_close_io(
    device: RunningDevice, runtime: RuntimeRs
) -> None:
    first, second = noise.randbytes(200_000), noise.randbytes(2_000_000)
    for data, sent in ((first, len(first)), (second, len(first) + len(second))):
        Writer(runtime.containerd("stdin"), data)  # closes when it has written all: a client that detaches
        device.run_until(lambda sent=sent: len(runtime.stdin.received) == sent)
        for _ in range(5):
            device.guest.work(0.01)
        assert not runtime.stdin.peer_shut, "a detached client is not the end of input"
    runtime.close_io()
    device.run_until(lambda: runtime.stdin.peer_shut & header.SHUT_SEND)
    assert bytes(runtime.stdin.received) == first + second


def test_runtime_rs_input_written_before_close_io_is_not_cut_by_a_slow_process(
    device: RunningDevice, runtime: RuntimeRs
) -> None:
    runtime.stdin.reading = False
    data = noise.randbytes(1_000_000)
    writer = Writer(runtime.containerd("stdin"), data)
    runtime.close_io()
    while writer.is_alive():
        runtime.stdin.read()
        device.guest.work(0.01)
    runtime.stdin.reading = True
    device.run_until(lambda: runtime.stdin.peer_shut)
    assert bytes(runtime.stdin.received) == data


def test_a_guest_that_does_not_listen_is_an_end_without_a_line(device: RunningDevice) -> None:
    """All of them try again then; none understands an error line."""
    for request in (b"connect 99\n", b"CONNECT 99\n"):
        client = device.client()
        client.sendall(request)
        assert device.answer(client) == b""
    client = device.client()
    client.sendall(b"passfd\n")
    read_end, write_end = os.pipe()
    socket.send_fds(client, [b"99"], [read_end])
    assert device.answer(client) == b""
    os.close(read_end)
    with pytest.raises(BrokenPipeError):
        os.write(write_end, b"the device has let go of it")
    os.close(write_end)


@pytest.mark.parametrize("verb", [b"connect", b"CONNECT", b"Connect"])
def test_an_agent_connection_carries_bytes_both_ways(device: RunningDevice, verb: bytes) -> None:
    client = device.client()
    client.sendall(verb + b" 1027\n")
    line = device.answer(client)
    word, port = line.split()
    assert (word, line[-1:]) == (b"OK", b"\n")
    assert 1 << 30 <= int(port) < 1 << 31, "the guest must be able to tell it from its own ports"
    guest = device.guest_end(int(port))
    client.sendall(b"request")
    device.run_until(lambda: guest.received == b"request")
    guest.send(b"response")
    assert device.answer(client) == b"response"


def test_firecrackers_client_may_send_its_payload_with_the_line(device: RunningDevice) -> None:
    client = device.client()
    client.sendall(b"CONNECT 1027\nfirst bytes")
    line = device.answer(client)
    guest = device.guest_end(int(line.removeprefix(b"OK ")))
    device.run_until(lambda: guest.received == b"first bytes")


def test_host_ports_are_unique_over_both_kinds_of_connection(device: RunningDevice) -> None:
    """An agent finds its stream by this port alone."""
    ports = set()
    for _ in range(10):
        ports.add(device.connect()[1].host_port)
        read_end, write_end = os.pipe()
        ports.add(device.pass_fd(write_end, mode="")[1].host_port)
        os.close(read_end)
        os.close(write_end)
    assert len(ports) == 20
