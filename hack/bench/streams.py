"""One measurement each of a container's streams, of this shim or of runc's: rates in MB/s, times in seconds."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import rig
from integration.exec import opened, read_exactly

KIB64 = 64 << 10
PINGS = 300


@dataclass(frozen=True)
class Box:
    """A running container and the socket of its shim."""

    address: str
    container: str

    def run(self, *argv: str, stdin: bool = False) -> rig.Exec:
        run = rig.Exec(self.address, self.container, *argv, stdin=stdin)
        run.start()
        return run

    def shell(self, script: str, *, stdin: bool = False) -> rig.Exec:
        return self.run("sh", "-c", script, stdin=stdin)

    def stdout(self, size: int, block: int = KIB64) -> float:
        """MB/s of one exec that writes zeros in blocks."""
        run = self.run("dd", "if=/dev/zero", f"bs={block}", f"count={size // block}")
        total, seconds = run.drain()
        assert (run.finish(), total) == (0, size // block * block), f"{total} bytes of {size}"
        return total / seconds / 1e6

    def stdin(self, size: int) -> float:
        """MB/s into one exec, from the first byte until it says that it has seen the end."""
        run = self.shell("echo; dd of=/dev/null bs=64k 2>/dev/null; echo", stdin=True)
        read_exactly(run.stdout, 1)
        zeros = bytes(KIB64)
        with opened(run.writer()) as stdin:
            started = time.monotonic()
            for _ in range(size // KIB64):
                assert os.write(stdin, zeros) == KIB64
        run.close_stdin()
        assert read_exactly(run.stdout, 1)
        seconds = time.monotonic() - started
        assert run.finish() == 0
        return size / seconds / 1e6

    def pipe(self, size: int, block: int = KIB64) -> float:
        """MB/s of `dd | dd` inside, by the container's clock (hundredths of a second)."""
        move = f"dd if=/dev/zero bs={block} count={size // block} 2>/dev/null | dd of=/dev/null bs=64k 2>/dev/null"
        run = self.shell(f"read start _ </proc/uptime; {move}; read end _ </proc/uptime; echo $start $end")
        with open(run.stdout, closefd=False) as stdout:
            start, end = map(float, stdout.read().split())
        assert run.finish() == 0
        return size / (end - start) / 1e6

    def at_once(self, count: int, size: int) -> float:
        """MB/s of as many execs together, which begin on a word; `size` bytes each."""
        script = f"echo; read go; dd if=/dev/zero bs=64k count={size // KIB64} 2>/dev/null"
        runs = [self.shell(script, stdin=True) for _ in range(count)]
        for run in runs:
            read_exactly(run.stdout, 1)
        writers = [run.writer() for run in runs]
        with ThreadPoolExecutor(count) as pool:
            started = time.monotonic()
            drained = [pool.submit(run.drain) for run in runs]
            for writer in writers:
                os.write(writer, b"\n")
            totals = [future.result()[0] for future in drained]
        seconds = time.monotonic() - started
        for writer in writers:
            os.close(writer)
        assert [run.finish() for run in runs] == [0] * count
        assert totals == [size] * count, totals
        return count * size / seconds / 1e6

    def round_trip(self) -> float:
        """Seconds of one byte to `cat` and back, the median."""
        run = self.run("cat", stdin=True)
        with opened(run.writer()) as stdin:
            seconds = ping(stdin, run.stdout)
        run.close_stdin()
        assert run.finish() == 0
        return seconds


def ping(writer: int, reader: int) -> float:
    """Seconds of one byte there and back, the median."""
    times = []
    for _ in range(PINGS):
        started = time.perf_counter()
        os.write(writer, b"x")
        assert os.read(reader, 1) == b"x"
        times.append(time.perf_counter() - started)
    return statistics.median(times)
