"""One exec made by the Task service itself, with FIFOs that the caller holds: ctr hides when they open and close."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import select
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from integration.ctr import Ctr
from integration.ttrpc import Answer, Task, message

PROCESS_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Process"
RUNNING = 2


class Exec:
    """`start` after construction; `finish` at the end of a process, `discard` whatever has become of it.

    `streams` are those with a FIFO; `shared` gives stdout and stderr the same one.
    """

    _numbers = itertools.count(1)

    def __init__(
        self,
        address: str,
        container: str,
        *argv: str,
        streams: tuple[str, ...] = ("stdout",),
        shared: bool = False,
        terminal: bool = False,
        cwd: str = "/",
        service: str = "containerd.task.v2.Task",
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kpx")
        self.ids = {"f1": container, "f2": f"fifo{next(Exec._numbers)}"}
        self.task = Task(address, timeout=600, service=service)
        self.paths = {name: str(Path(self._folder.name, name)) for name in streams}
        for path in self.paths.values():
            os.mkfifo(path)
        if shared:
            self.paths["stderr"] = self.paths["stdout"]
        process = {
            "args": list(argv), "cwd": cwd, "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
            "user": {"uid": 0, "gid": 0}, "terminal": terminal,
        }  # fmt: skip
        fields = {f"f{4 + number}": self.paths.get(name, "") for number, name in enumerate(_NAMES)}
        spec = message(f1=PROCESS_TYPE, f2=json.dumps(process))
        self._ok("Exec", **fields, f3=int(terminal), f7=spec)

    def call(self, method: str, **fields: str | bytes | int) -> Answer:
        return self.task.call(method, **self.ids, **fields)

    def _ok(self, method: str, **fields: str | bytes | int) -> dict[int, int | bytes]:
        answer = self.call(method, **fields)
        assert answer.code == 0, f"{method}: {answer.message}"
        return answer.fields

    def reader(self, name: str = "stdout") -> int:
        """A new reading end, opened without waiting for a writer, as containerd's client does; it reads blocking."""
        fd = os.open(self.paths[name], os.O_RDONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        return fd

    def writer(self) -> int:
        """A new writing end of stdin. OSError (ENXIO) when nobody reads it."""
        fd = os.open(self.paths["stdin"], os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(fd, True)
        return fd

    def start(self) -> None:
        self._ok("Start")

    def close_stdin(self) -> None:
        self._ok("CloseIO", f3=1)

    def runs(self) -> bool:
        return self._ok("State").get(4) == RUNNING

    def wait(self) -> int:
        code = self._ok("Wait").get(1, 0)
        assert isinstance(code, int)
        return code

    def finish(self) -> int:
        """Waits for its end and removes it; the exit status."""
        code = self.wait()
        self._ok("Delete")
        self.close()
        return code

    def discard(self) -> None:
        """Kills it if it still runs."""
        if self.call("Kill", f3=9).code == 0:
            self.call("Wait")
        self.call("Delete")
        self.close()

    def close(self) -> None:
        self.task.close()
        self._folder.cleanup()


_NAMES = ("stdin", "stdout", "stderr")


def shim_service(ctr: Ctr) -> str:
    """runc's shim of containerd 2 has only the v3 service; ours has both, and containerd uses v2 with it."""
    runc = ctr.runtime == "io.containerd.runc.v2" and ctr.daemon.version == "2"
    return "containerd.task.v3.Task" if runc else "containerd.task.v2.Task"


class Execs:
    """Makes execs in one container; what a test leaves is discarded."""

    def __init__(self, ctr: Ctr, container: str) -> None:
        self._address, self._container = ctr.daemon.shim_address(container), container
        self._service = shim_service(ctr)
        self.vm = ctr.runtime != "io.containerd.runc.v2"

    def new(self, *argv: str, **options: object) -> Exec:
        return Exec(self._address, self._container, *argv, service=self._service, **options)  # type: ignore[arg-type]

    def shell(self, script: str, **options: object) -> Exec:
        return self.new("sh", "-c", script, **options)

    @contextmanager
    def running(self, script: str, **options: object) -> Iterator[Exec]:
        """Started, with whatever FIFOs; discarded unless the test has finished it."""
        run = self.shell(script, **options)
        try:
            run.start()
            yield run
        finally:
            run.discard()


@contextmanager
def opened(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def read_some(fd: int, size: int = 65536, timeout: float = 30) -> bytes:
    """What comes next, b"" at the end; AssertionError if neither does in time."""
    poll = select.poll()  # which takes any descriptor, however many there are
    poll.register(fd, select.POLLIN)
    assert poll.poll(timeout * 1000), f"nothing to read for {timeout} s"
    return os.read(fd, size)


def read_exactly(fd: int, size: int, timeout: float = 30) -> bytes:
    data = b""
    while len(data) < size and (more := read_some(fd, size - len(data), timeout)):
        data += more
    return data


def read_all(fd: int, timeout: float = 60) -> bytes:
    """To the end."""
    deadline, data = time.monotonic() + timeout, bytearray()
    while more := read_some(fd, 1 << 20, max(0.0, deadline - time.monotonic())):
        data += more
    return bytes(data)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
