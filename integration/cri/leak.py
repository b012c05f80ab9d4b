"""What a pod may not leave behind: processes, mounts (network namespaces among them), run directories,
links in the network namespace that stands for the node's."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from integration import process
from integration.cri.crictl import Crictl
from integration.leak import RUN


def present(crictl: Crictl) -> set[str]:
    """Everything of this test run's pods that exists now, one line for each thing."""
    daemon, found = crictl.daemon, set()
    for item in process.marked(str(daemon.root)).values():
        if item.pid != daemon.pid and item.role != "other" and item.state != "Z":
            found.add(f"process {item.pid} {item.command[:300]}")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if str(daemon.root) in line.split()[4]:
            found.add(f"mount {line.split()[4]}")
    for folder in RUN.glob("k8s.io/*"):  # other test runs' are there too
        record = folder / "record.json"
        if record.exists() and any(
            str(path) in record.read_text() for path in daemon.shim_sockets(folder.name)
        ):
            found.add(f"folder {folder}")
    if daemon.bundles.is_dir():
        found |= {f"folder {path}" for path in daemon.bundles.iterdir()}
    found |= {f"link {name}" for name in links(crictl)}
    return found


def links(crictl: Crictl) -> list[str]:
    """Network interfaces in the network namespace that stands for the node's."""
    command = ["ip", "-json", "-n", crictl.daemon.net.name, "link"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    return [link["ifname"] for link in json.loads(shown)]


def left(crictl: Crictl, before: set[str], timeout: float = 10) -> set[str]:
    """What is there now and was not `before`; waits for it to go, since a shim ends after its last answer."""
    deadline = time.monotonic() + timeout
    while (leaked := present(crictl) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    return leaked
