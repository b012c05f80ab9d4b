"""A shell in the guest, with a device that is a socket of this test; the terminal is a real one."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from typing import Any

from shim.pb.kata_py import guest as pb_guest
from shim.pb.kata_py import introspect as pb
from shim.ttrpc.server import Server
from tests.bootstrap.installed import eventually

from .conftest import UP, Tool

PORT = 1073741824  # of the host's end of the connection

CONSOLE = pb.SandboxResponse(
    state="up",
    settings=[pb.Setting("debug_console", "true"), pb.Setting("debug_console_vport", "99")],
)
CODE = (
    "import sys; from shim.record import place; place.RUN_DIR = sys.argv.pop(1);"
    "from shim.cli.main import main; sys.exit(main())"
)


class Guest(pb_guest.GuestBase):
    """Our agent's part in it: a shell that ends with `status` when `ended` is set."""

    def __init__(self, status: int) -> None:
        self.sizes: list[tuple[int, int]] = []
        self.ended, self._status = threading.Event(), status

    async def resize_console(self, resize_console_request: pb_guest.ResizeConsoleRequest) -> Any:
        assert resize_console_request.host_port == PORT
        self.sizes.append((resize_console_request.rows, resize_console_request.columns))
        return pb_guest.ResizeConsoleResponse()

    async def wait_console(self, wait_console_request: pb_guest.WaitConsoleRequest) -> Any:
        assert wait_console_request.host_port == PORT
        await asyncio.to_thread(self.ended.wait, 10)
        return pb_guest.WaitConsoleResponse(self._status)


class Device:
    """Accepts a connection and lets `shell` talk on it, and one for the agent's RPCs, which are `guest`'s; without
    one it is Kata's."""

    def __init__(self, run_dir: str, shell: Callable[[socket.socket], None], guest: Guest | None) -> None:
        self.asked, self._shell, self._guest = b"", shell, guest
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{run_dir}/vsock.sock")
        self._listener.listen()
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as connection:
            self.asked = connection.recv(100)
            connection.sendall(b"OK %d\n/ # " % PORT)
            agent = self._listener.accept()[0]
            assert agent.recv(100) == b"CONNECT 1024\n"
            agent.sendall(b"OK 1\n")
            self._threads.append(threading.Thread(target=lambda: asyncio.run(self._serve_agent(agent))))
            self._threads[1].start()
            self._shell(connection)
            if self._guest is not None:
                self._guest.ended.set()

    async def _serve_agent(self, connected: socket.socket) -> None:
        server = Server([] if self._guest is None else [self._guest])
        connected.setblocking(False)
        await server.serve_connection(connected)
        while server._links:  # noqa: ASYNC110 - until the client leaves
            await asyncio.sleep(0.005)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(10)


def command(tool: Tool, *args: str) -> list[str]:
    return [sys.executable, "-c", CODE, str(tool.folder / "run"), "exec", *args]


def until(connection: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        chunk = connection.recv(100)
        assert chunk, data
        data += chunk
    return data


def test_piped_input_is_typed_and_its_end_ends_the_shell(tool: Tool) -> None:
    heard = []

    def shell(connection: socket.socket) -> None:
        heard.append(until(connection, b"\x04"))
        until(connection, b"\x04")  # the first was lost: it comes again
        connection.sendall(b"x" * 100_000 + b"bye\r\n")

    device = Device(tool.record().run_dir, shell, None)
    with tool.live(response=CONSOLE):
        done = subprocess.run(
            command(tool, "s1"), input=b"ls\n", capture_output=True, timeout=20, check=False
        )
    device.join()
    assert done.returncode == 0 and done.stdout == b"/ # " + b"x" * 100_000 + b"bye\r\n", done.stderr
    assert device.asked == b"CONNECT 99\n" and heard == [b"ls\n\x04"]


def test_a_terminal_is_raw_meanwhile_and_gives_its_size_and_the_status_is_the_shell_s(tool: Tool) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    modes, guest = [], Guest(3)
    termios.tcsetwinsize(theirs, (40, 100))

    def shell(connection: socket.socket) -> None:
        eventually(lambda: guest.sizes == [(40, 100)])
        termios.tcsetwinsize(theirs, (50, 120))
        child.send_signal(signal.SIGWINCH)
        eventually(lambda: guest.sizes[1:] == [(50, 120)])
        until(connection, b"\x03")  # Ctrl-C is the shell's
        modes.append(termios.tcgetattr(theirs))
        connection.sendall(b"\r\n")

    device = Device(tool.record().run_dir, shell, guest)
    with tool.live(response=CONSOLE):
        child = subprocess.Popen(command(tool, "s1", "--port", "7"), stdin=theirs, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.read(4) == b"/ # "
        os.write(ours, b"\x03")
        assert child.wait(20) == 3
        child.stdout.close()
    device.join()
    assert device.asked == b"CONNECT 7\n"
    assert not modes[0][3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def test_without_the_setting_it_says_which(tool: Tool) -> None:
    tool.record()
    with tool.live(response=UP):
        done = tool("exec", "s1")
    assert done.code == 1 and done.err.startswith(
        "kata-py: sandbox s1 has no debug console: set debug_console = "
    )


def test_a_vm_that_is_gone_is_told(tool: Tool) -> None:
    tool.record()
    with tool.live(response=CONSOLE):
        done = tool("exec", "s1")
    assert done.code == 1 and done.err.startswith("kata-py: the vsock device is gone: ")
