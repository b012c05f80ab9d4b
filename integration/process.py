"""What /proc says of processes: who belongs to a test run, who descends from whom, who used how much CPU."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    started: int  # clock ticks after boot: with the pid, the identity of a process
    cpu_s: float  # user and system time
    state: str
    command: str

    @property
    def role(self) -> str:
        """Which of a sandbox's processes this is: shim, qemu, virtiofsd, device or other."""
        words = self.command.split()
        names = {os.path.basename(word) for word in words[:4]}
        if any(name.startswith("qemu") for name in names):
            return "qemu"
        if "virtiofsd" in names:
            return "virtiofsd"
        if "kata-py-vsock" in names or "shim.vsock.main" in words:
            return "device"
        return "shim" if "-namespace" in words else "other"


def read(pid: int) -> Process | None:
    """None when there is no such process (any more)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The program's name stands in brackets and may hold anything, brackets and spaces too.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        started=int(fields[19]),
        cpu_s=(int(fields[11]) + int(fields[12])) / TICKS_PER_S,
        state=fields[0].decode(),
        command=command.replace(b"\0", b" ").decode(errors="replace").strip(),
    )


def every() -> dict[int, Process]:
    found = (read(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(of: Iterable[int]) -> dict[int, Process]:
    """The living processes below the given ones (which are not among them)."""
    table, result, parents = every(), {}, set(of)
    while parents:
        level = {pid: process for pid, process in table.items() if process.parent in parents}
        level = {pid: process for pid, process in level.items() if pid not in result}
        result.update(level)
        parents = set(level)
    return result


def marked(marker: str) -> dict[int, Process]:
    """Processes with `marker` in their command line or environment, and everything below them."""
    needle, result = marker.encode(), {}
    for pid, process in every().items():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            environment = b""
        if marker in process.command or needle in environment:
            result[pid] = process
    return {**result, **descendants(result)}


def alive(processes: Iterable[Process]) -> list[Process]:
    """Those that still run; a zombie has ended."""
    now = ((read(process.pid), process) for process in processes)
    return [new for new, old in now if new and new.started == old.started and new.state != "Z"]
