"""Runs the real device program with a guest driver on the other end of its socketpair."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from shim.vsock import header
from tests.fakes.guest_driver import GuestDriver, GuestSocket

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = ROOT / "cmd" / "kata-py-vsock"


class RunningDevice:
    """The program, its guest, and clients of its socket. `port` 1027 listens in the guest."""

    def __init__(self, folder: Path, **driver: object) -> None:
        self.path = str(folder / "vsock.sock")
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(64)
        ours, front = socket.socketpair()
        self.log = folder / "log"
        fds = (front.fileno(), listener.fileno())
        argv = [
            sys.executable,
            "-IS",
            str(PROGRAM),
            "--vhost-user-fd",
            str(fds[0]),
            "--listen-fd",
            str(fds[1]),
        ]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [*argv, "--socket-path", self.path, "--debug"], pass_fds=fds, stderr=log, stdout=log
            )
        front.close()
        listener.close()
        self.guest = GuestDriver(ours, **driver)  # type: ignore[arg-type]
        self.accepted: list[GuestSocket] = []
        self.guest.listening[1027] = self.accepted.append
        self.clients: list[socket.socket] = []

    def close(self) -> None:
        """Ends the program by hanging up; whatever it ended with, it must have been on purpose."""
        self.guest.close()
        for client in self.clients:
            client.close()
        try:
            self.process.wait(15)
        finally:
            self.process.kill()
            self.process.wait()
        assert "Traceback" not in self.log.read_text(), self.log.read_text()

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.connect(self.path)
        client.settimeout(10)
        self.clients.append(client)
        return client

    def answer(self, client: socket.socket) -> bytes:
        """The next bytes on `client`, while the guest goes on working. b"" for a closed socket."""
        found: list[bytes] = []

        def readable() -> bool:
            if select.select([client], [], [], 0)[0]:
                try:
                    found.append(client.recv(4096))
                except ConnectionResetError:
                    found.append(b"")
            return bool(found)

        self.guest.run_until(readable)
        return found[0]

    def connect(self, port: int = 1027) -> tuple[socket.socket, GuestSocket]:
        client = self.client()
        client.sendall(b"CONNECT %d\n" % port)
        line = self.answer(client)
        assert line.startswith(b"OK "), line
        return client, self.guest_end(int(line.split()[1]))

    def pass_fd(self, fd: int, mode: str = " stream", port: int = 1027) -> tuple[socket.socket, GuestSocket]:
        client = self.client()
        client.sendall(b"passfd\n")
        socket.send_fds(client, [f"{port}{mode}".encode()], [fd])
        line = self.answer(client)
        assert line.startswith(b"OK "), line
        return client, self.guest_end(int(line.split()[1]))

    def guest_end(self, host_port: int) -> GuestSocket:
        return next(sock for sock in reversed(self.accepted) if sock.host_port == host_port)

    def open_fds(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def cpu_ticks(self) -> int:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def still_works(self) -> None:
        """A new connection can be made and carries bytes both ways."""
        client, guest = self.connect()
        client.sendall(b"ping")
        self.guest.run_until(lambda: guest.received == b"ping")
        guest.send(b"pong")
        assert self.answer(client) == b"pong"
        client.close()
        self.guest.run_until(lambda: guest.peer_shut or guest.is_reset)
        guest.emit(header.OP_RST)
        self.guest.sockets.pop((guest.port, guest.host_port), None)

    def run_until(self, condition: Callable[[], object], timeout_s: float = 20.0) -> None:
        self.guest.run_until(condition, timeout_s)

    def terminate(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15)
