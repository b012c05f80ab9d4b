"""`ctr` as a user runs it: with pipes, or on a terminal."""

from __future__ import annotations

import fcntl
import itertools
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.daemon import Containerd

IMAGE = "localhost/busybox:latest"
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Done:
    """How a ctr ended."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode(errors="replace")

    def ok(self) -> Done:
        assert self.code == 0, (
            f"exit status {self.code}\nstdout: {self.text[-2000:]}\nstderr: {self.err[-2000:]}"
        )
        return self


class Ctr:
    """Calls ctr on one containerd, namespace, runtime and snapshotter."""

    def __init__(self, daemon: Containerd, runtime: str, snapshotter: str) -> None:
        self.daemon, self.runtime, self.snapshotter = daemon, runtime, snapshotter
        self.made: list[str] = []  # every container id handed out
        self._number = itertools.count(1)

    def new_id(self) -> str:
        self.made.append(f"c{next(self._number)}")
        return self.made[-1]

    def argv(self, *args: str) -> list[str]:
        daemon = self.daemon
        program = str(daemon.programs / "ctr")
        return [program, "--address", daemon.address, "--namespace", daemon.namespace, *args]

    def run_args(
        self, container: str, *command: str, options: Sequence[str] = ("--rm",), rootfs: Path | None = None
    ) -> list[str]:
        """`ctr run ...`, with our runtime and snapshotter, from the test image or a folder."""
        what = ["--rootfs", str(rootfs)] if rootfs else ["--snapshotter", self.snapshotter, IMAGE]
        return ["run", "--runtime", self.runtime, *options, *what, container, *command]

    def __call__(
        self, *args: str, stdin: bytes | int | Any = subprocess.DEVNULL, timeout: float = TIMEOUT_S
    ) -> Done:
        """Runs ctr to its end. `stdin`: bytes to pipe in, or a file. TimeoutExpired when it hangs."""
        source: dict[str, Any] = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
        done = subprocess.run(self.argv(*args), capture_output=True, timeout=timeout, check=False, **source)
        return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def run(
        self, *command: str, options: Sequence[str] = ("--rm",), container: str | None = None, **more: Any
    ) -> Done:
        """`ctr run` in a new container, to its end."""
        rootfs, container = more.pop("rootfs", None), container or self.new_id()
        return self(*self.run_args(container, *command, options=options, rootfs=rootfs), **more)

    def detached(self, *command: str, options: Sequence[str] = ()) -> str:
        """`ctr run -d`: the id of a container that runs `command`. Nobody reads its stdio yet."""
        container = self.new_id()
        self(*self.run_args(container, *command, options=["-d", *options])).ok()
        return container

    def exec_args(self, container: str, *command: str, options: Sequence[str] = ()) -> list[str]:
        return ["task", "exec", "--exec-id", f"e{next(self._number)}", *options, container, *command]

    def exec(self, container: str, *command: str, options: Sequence[str] = (), **more: Any) -> Done:
        return self(*self.exec_args(container, *command, options=options), **more)

    def spawn(self, *args: str, **more: Any) -> subprocess.Popen[bytes]:
        """A ctr in the background with pipes; the caller ends it."""
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(self.argv(*args), **pipes)

    def terminal(self, *args: str, rows: int = 24, columns: int = 80) -> Terminal:
        return Terminal(self.argv(*args), rows, columns)

    def tasks(self) -> dict[str, tuple[int, str]]:
        """What `ctr task ls` says: container → (pid, status)."""
        rows = [line.split() for line in self("task", "ls").ok().text.splitlines()[1:]]
        return {row[0]: (int(row[1]), row[2]) for row in rows}

    def containers(self) -> list[str]:
        return self("container", "ls", "-q").ok().text.split()

    def remove(self, container: str) -> None:
        """Task and container away, whatever their state; failures are for the leak check to find."""
        self("task", "rm", "-f", container)
        self("container", "rm", container)


class Terminal:
    """A program on a pseudo terminal."""

    def __init__(self, argv: list[str], rows: int, columns: int) -> None:
        self._fd, child_end = pty.openpty()
        self.resize(rows, columns)
        # setsid makes it the program's controlling terminal, without which there is no SIGWINCH.
        argv = ["setsid", "--ctty", *argv]
        self.child = subprocess.Popen(argv, stdin=child_end, stdout=child_end, stderr=child_end)
        os.close(child_end)
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        """As a terminal emulator does it; the program gets SIGWINCH."""
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def write(self, data: bytes) -> None:
        os.write(self._fd, data)

    def _read(self, timeout: float) -> bytes:
        """What comes next; b"" at the end of the terminal."""
        ready, _, _ = select.select([self._fd], [], [], max(timeout, 0))
        assert ready, f"nothing more on the terminal in time; seen: {self.seen!r}"
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # EIO: the last user of the other end is gone
            return b""
        self.seen += data
        return data

    def until(self, wanted: bytes, timeout: float = TIMEOUT_S) -> bytes:
        """Reads on until `wanted` has been seen since the last call; returns all of it."""
        deadline = time.monotonic() + timeout
        while wanted not in self.seen:
            assert self._read(deadline - time.monotonic()), f"the program ended; seen: {self.seen!r}"
        at = self.seen.index(wanted) + len(wanted)
        found, self.seen = self.seen[:at], self.seen[at:]
        return found

    def finish(self, timeout: float = TIMEOUT_S) -> int:
        """Reads to the end; the exit status."""
        deadline = time.monotonic() + timeout
        while self._read(deadline - time.monotonic()):
            pass
        code = self.child.wait(timeout)
        os.close(self._fd)
        return code

    def abandon(self) -> None:
        """Closes the window under the program, as a user does who detaches."""
        self.child.kill()
        self.child.wait()
        os.close(self._fd)
