"""What the streams are compared with in the same guest: the agent's ReadStdout RPC, and a vsock connection alone."""

from __future__ import annotations

import asyncio
import threading
import time

from integration.guest_run import GuestRunner
from streams import ping

PORT = 5001
# In the guest, with the agent's Python: sends back what it gets on one connection.
ECHO = f"""
import socket
listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((socket.VMADDR_CID_ANY, {PORT}))
listener.listen(1)
stream, _ = listener.accept()
while data := stream.recv(4096):
    stream.send(data)
"""


async def read_rate(guest: GuestRunner, size: int) -> float:
    """MB/s of a container's stdout by ReadStdout, from the first byte to the end: one request for each buffer."""
    total, started = 0, 0.0
    async for data in guest.output("dd", "if=/dev/zero", "bs=64k", f"count={size >> 16}"):
        started = started or time.monotonic()
        total += len(data)
        ended = time.monotonic()
    assert total == size, f"{total} bytes of {size}"
    return total / (ended - started) / 1e6


def vsock_round_trip(guest: GuestRunner) -> float:
    """Seconds of one byte through the device to a program in the guest and back, without agent and pipes."""
    command = ("chroot", "/guest", "/usr/bin/python3", "-IS", "-c", ECHO)
    echo = threading.Thread(target=guest.run, args=command)
    echo.start()
    with asyncio.run(guest.device.connect(PORT, 30)) as connection:
        connection.setblocking(True)
        seconds = ping(connection.fileno(), connection.fileno())
    echo.join()
    return seconds
