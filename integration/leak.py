"""What a container may not leave behind: processes, mounts, sockets, folders."""

from __future__ import annotations

import os
import time
from pathlib import Path

from integration import process
from integration.ctr import Ctr

RUN = Path("/run/kata-py")


def present(ctr: Ctr) -> set[str]:
    """Everything of this test run that exists now, one line for each thing."""
    daemon = ctr.daemon
    found = set()
    for item in process.marked(str(daemon.root)).values():
        if item.pid not in (daemon.pid, os.getpid()) and item.state != "Z":
            found.add(f"process {item.pid} {item.command[:300]}")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split()[4]
        if place.startswith((str(daemon.root), str(RUN / daemon.namespace))):
            found.add(f"mount {place}")
    for container in ctr.made:
        found |= {f"socket {path}" for path in daemon.shim_sockets(container) if path.exists()}
    folders = [
        RUN / daemon.namespace,
        daemon.bundles,
        daemon.root / "root" / daemon.bundles.relative_to(daemon.root / "state"),
    ]
    for folder in folders:
        if folder.is_dir():
            found |= {f"folder {path}" for path in folder.iterdir()}
    found |= {f"container {name}" for name in ctr.containers()}
    return found


def left(ctr: Ctr, before: set[str], timeout: float = 10) -> set[str]:
    """What is there now and was not `before`; waits for it to go, since a shim ends after its last answer."""
    deadline = time.monotonic() + timeout
    while (leaked := present(ctr) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return leaked
