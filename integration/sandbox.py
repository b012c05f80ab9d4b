"""The processes of one sandbox, and when they are gone."""

from __future__ import annotations

import time
from collections.abc import Iterable

from integration import process
from integration.ctr import Ctr
from integration.process import Process


def members(ctr: Ctr, container: str) -> dict[int, Process]:
    """The shim of `container` (a sandbox of one) and everything below it."""
    words = ("-namespace", ctr.daemon.namespace, "-id", container)
    shims = {
        pid: item
        for pid, item in process.every().items()
        if item.role == "shim" and all(word in item.command.split() for word in words)
    }
    return {**shims, **process.descendants(shims)}


def wait_gone(processes: Iterable[Process], timeout: float) -> None:
    """AssertionError naming those that still run after `timeout` seconds."""
    processes = list(processes)
    deadline = time.monotonic() + timeout
    while living := process.alive(processes):
        assert time.monotonic() < deadline, f"still there after {timeout} s: {living}"
        time.sleep(0.05)
