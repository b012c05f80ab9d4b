"""Our agent and device under a runtime that is not ours, in a real VM: runtime-rs's calls, bytes and FIFOs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from integration.ctr import Ctr
from integration.sandbox import members
from tests.fakes.dragonball import read_some
from tests.fakes.kata_runtime import SHARED, RuntimeRs
from tests.fakes.kata_wire import KataWire

pytestmark = pytest.mark.vm

AGENT_PORT, PASSFD_PORT = 1024, 1027
NONBLOCK = os.O_NONBLOCK | os.O_CLOEXEC


class Neighbour(RuntimeRs):
    """A runtime beside our shim, in its VM: its containers have the root of the one that is there."""

    def __init__(self, wire: KataWire, box: str) -> None:
        super().__init__(wire)
        self._box = box

    def root(self, container_id: str) -> str:
        return f"{SHARED}{self._box}-1"


def hvsock(ctr: Ctr, box: str) -> str:
    """The Unix socket of the sandbox's vsock device."""
    words = next(item.command for item in members(ctr, box).values() if item.role == "device").split()
    return words[words.index("--socket-path") + 1]


def ask(path: str, line: bytes, fd: int | None = None) -> tuple[socket.socket, int]:
    """A connection and the port behind OK."""
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    client.connect(path)
    client.sendall(line)
    if fd is not None:
        socket.send_fds(client, [b"%d" % PASSFD_PORT], [fd])
    word, port = client.recv(64).split()
    assert word == b"OK"
    return client, int(port)


class Stdio:
    """Three FIFOs, opened and passed in runtime-rs's order; `stdin_keeper` is what CloseIO closes."""

    def __init__(self, path: str, folder: Path, stack: ExitStack) -> None:
        self._path, self._folder = path, folder
        folder.mkdir()
        for name in ("stdin", "stdout", "stderr"):
            os.mkfifo(folder / name)
        for name in ("stdout", "stderr"):
            stack.callback(os.close, self._open(name, os.O_RDONLY))
        directions = {"stdin": os.O_RDONLY, "stdout": os.O_WRONLY, "stderr": os.O_WRONLY}
        self.ports = [self._pass(name, mode) for name, mode in directions.items()]
        self.stdin_keeper = self._open("stdin", os.O_WRONLY)

    def _open(self, name: str, mode: int) -> int:
        return os.open(self._folder / name, mode | NONBLOCK)

    def _pass(self, name: str, mode: int) -> int:
        fd = self._open(name, mode)
        client, port = ask(self._path, b"passfd\n", fd)
        client.close()
        os.close(fd)
        return port

    def feed(self, data: bytes) -> None:
        """containerd's copy of a client's input, and CloseIO at its end."""

        def write() -> None:
            (self._folder / "stdin").write_bytes(data)
            os.close(self.stdin_keeper)

        threading.Thread(target=write, daemon=True).start()

    async def read(self, name: str) -> bytes:
        fd, data = self._open(name, os.O_RDONLY), b""
        try:
            while part := await read_some(fd):
                data += part
            return data
        finally:
            os.close(fd)


def test_runtime_rs_runs_a_container_an_exec_and_a_terminal(ctr: Ctr, box: str, tmp_path: Path) -> None:
    path = hvsock(ctr, box)
    payload = os.urandom(2 << 20)

    async def scenario(stack: ExitStack) -> None:
        control, _ = ask(path, b"connect %d\n" % AGENT_PORT)
        runtime = Neighbour(KataWire(control), box)
        stdio = Stdio(path, tmp_path / "init", stack)
        script = "echo ready; cat; echo err >&2; sleep 100000 & wait; exit 7"
        await runtime.create("foreign", ["sh", "-c", script], stdio.ports)
        exit_code = await runtime.start("foreign")
        out, err = (asyncio.create_task(stdio.read(name)) for name in ("stdout", "stderr"))
        stdio.feed(payload)

        exec_io = Stdio(path, tmp_path / "exec", stack)
        done = await runtime.exec("foreign", "exec-1", ["sh", "-c", "echo $0; exit 3"], exec_io.ports)
        assert await exec_io.read("stdout") == b"sh\n"
        assert await done == 3
        os.close(exec_io.stdin_keeper)

        tty_io = Stdio(path, tmp_path / "tty", stack)
        script = "read line; stty size; echo got $line"
        done = await runtime.exec(
            "foreign", "exec-2", ["sh", "-c", script], [*tty_io.ports[:2], 0], size=(33, 77)
        )
        tty_io.feed(b"typed\n")
        said = await tty_io.read("stdout")
        assert b"33 77\r\n" in said
        assert b"got typed\r\n" in said
        assert await done == 0

        await runtime.wire.call("SignalProcess", {1: "foreign", 3: 15})
        assert await exit_code == 143
        await runtime.after_exit("foreign")
        everything = await out
        assert everything.startswith(b"ready\n")
        assert hashlib.sha256(everything[6:]).digest() == hashlib.sha256(payload).digest()
        assert await err == b"err\n"
        await runtime.wire.aclose()

    with ExitStack() as stack:
        asyncio.run(asyncio.wait_for(scenario(stack), 60))
    assert ctr.exec(box, "echo", "our own").ok().text == "our own\n"
