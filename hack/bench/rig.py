"""What the benchmarks share: a containerd with the test image, one VM, and execs whose FIFOs the benchmark holds.

ctr would copy every byte twice more, so throughput is measured without it: the benchmark makes the FIFOs, calls
the Task service itself and reads as containerd's client would.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from integration import exec, process  # noqa: E402
from integration.conftest import guest_settings, import_image  # noqa: E402
from integration.ctr import Ctr  # noqa: E402
from integration.daemon import Containerd  # noqa: E402

RUNTIME = "io.containerd.kata-py.v2"


def arguments(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--containerd", default="1.6", choices=["1.6", "1.7", "2"])
    parser.add_argument(
        "--guest", type=Path, default=CHECKOUT / "build/guest", help="folder of the guest image"
    )
    parser.add_argument("--settings", default="", help="TOML lines for the shim's configuration")
    return parser


@contextmanager
def containerd(options: argparse.Namespace, files: Mapping[str, bytes] | None = None) -> Iterator[Ctr]:
    """A private containerd with the test image imported, `files` by their paths in it; everything is removed at the
    end."""
    found = subprocess.run(
        [CHECKOUT / "hack/containerd", options.containerd], check=True, stdout=subprocess.PIPE, text=True
    )
    guest = guest_settings(options.guest, "auto")
    programs = Path(found.stdout.strip())
    daemon = Containerd(
        options.containerd, programs, CHECKOUT / "cmd", f"{guest}{options.settings}\n", "info"
    )
    ctr = Ctr(daemon, RUNTIME, "overlayfs")
    try:
        daemon.tool("template", "create")
        daemon.start()
        with tempfile.TemporaryDirectory() as folder:
            image, extra = Path(folder, "image.tar"), []
            for number, (path, data) in enumerate((files or {}).items()):
                Path(folder, str(number)).write_bytes(data)
                extra.append(f"{path}={folder}/{number}")
            subprocess.run([CHECKOUT / "hack/busybox-image", image, *extra], check=True)
            import_image(ctr, image, ctr.snapshotter)
        try:
            yield ctr
        finally:
            for name in ctr.containers():
                ctr.remove(name)
    finally:
        daemon.stop()
        daemon.remove()


def processes(ctr: Ctr) -> dict[str, list[process.Process]]:
    """The processes of the one sandbox that runs by role: shim, qemu, virtiofsd (two), device."""
    found: dict[str, list[process.Process]] = {}
    for item in process.marked(str(ctr.daemon.root)).values():
        found.setdefault(item.role, []).append(item)
    return found


def cpu_s(pid: int) -> float:
    found = process.read(pid)
    assert found is not None, f"process {pid} is gone"
    return found.cpu_s


def pss_mib(processes: list[process.Process], kinds: tuple[str, ...] = ("Pss_Anon:", "Pss_File:")) -> float:
    """Proportional set size of anonymous and file pages; the guest's RAM, which is shared memory, left out."""
    total = 0
    for item in processes:
        for line in Path(f"/proc/{item.pid}/smaps_rollup").read_text().splitlines()[1:]:
            name, value, *_ = line.split()
            total += int(value) if name in kinds else 0
    return round(total / 1024, 1)


class Exec(exec.Exec):
    """An exec whose outputs the benchmark has opened before it starts, as containerd's client does."""

    def __init__(self, address: str, container: str, *argv: str, stdin: bool = False) -> None:
        # runc's shim wants a stderr with a stdout, and a reader of both.
        streams = ("stdin", "stdout", "stderr") if stdin else ("stdout", "stderr")
        super().__init__(address, container, *argv, streams=streams)
        self.stdout, self._stderr = self.reader(), self.reader("stderr")

    def writer(self) -> int:
        """Waits for a reader: runc's shim opens stdin after the start."""
        return os.open(self.paths["stdin"], os.O_WRONLY)

    def drain(self) -> tuple[int, float]:
        """Reads stdout to its end: bytes, and seconds from the first to the last."""
        total, started = 0, 0.0
        null = os.open("/dev/null", os.O_WRONLY)
        while moved := os.splice(self.stdout, null, 1 << 20):
            started = started or time.monotonic()
            total += moved
        os.close(null)
        return total, time.monotonic() - started

    def close(self) -> None:
        super().close()
        os.close(self.stdout)
        os.close(self._stderr)


def report(options: argparse.Namespace, result: dict[str, object], lines: list[str]) -> None:
    print("\n".join(lines))
    if options.json:
        print(json.dumps(result))
