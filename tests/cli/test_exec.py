"""A shell in the guest, with a device that is a socket of this test; the terminal is a real one."""

from __future__ import annotations

import os
import pty
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Callable

from shim.pb.kata_py import introspect as pb

from .conftest import UP, Tool

CONSOLE = pb.SandboxResponse(
    state="up",
    settings=[pb.Setting("debug_console", "true"), pb.Setting("debug_console_vport", "99")],
)
CODE = (
    "import sys; from shim.record import place; place.RUN_DIR = sys.argv.pop(1);"
    "from shim.cli.main import main; sys.exit(main())"
)


class Device:
    """Accepts one connection and lets `shell` talk on it."""

    def __init__(self, run_dir: str, shell: Callable[[socket.socket], None]) -> None:
        self.asked, self._shell = b"", shell
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{run_dir}/vsock.sock")
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener, self._listener.accept()[0] as connection:
            self.asked = connection.recv(100)
            connection.sendall(b"OK 1073741824\n/ # ")
            self._shell(connection)

    def join(self) -> None:
        self._thread.join(10)


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

    device = Device(tool.record().run_dir, shell)
    with tool.live(response=CONSOLE):
        done = subprocess.run(
            command(tool, "s1"), input=b"ls\n", capture_output=True, timeout=20, check=False
        )
    device.join()
    assert done.returncode == 0 and done.stdout == b"/ # " + b"x" * 100_000 + b"bye\r\n", done.stderr
    assert device.asked == b"CONNECT 99\n" and heard == [b"ls\n\x04"]


def test_a_terminal_is_raw_meanwhile_and_as_before_afterwards(tool: Tool) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    modes = []

    def shell(connection: socket.socket) -> None:
        until(connection, b"\x03")  # Ctrl-C is the shell's
        modes.append(termios.tcgetattr(theirs))
        connection.sendall(b"\r\n")

    device = Device(tool.record().run_dir, shell)
    with tool.live(response=CONSOLE):
        child = subprocess.Popen(command(tool, "s1", "--port", "7"), stdin=theirs, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.read(4) == b"/ # "
        os.write(ours, b"\x03")
        assert child.wait(20) == 0
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
