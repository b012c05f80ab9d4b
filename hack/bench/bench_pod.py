"""What a pod costs: its start, a second container, its network, its memory; each beside the same through runc.

A start counts from `crictl runp` to the first line in the container's log, as a kubelet would see it; crictl is started
three times in it, and its own time is in both columns. Throughput is from the pod to the node, through CNI's bridge and
through `crictl port-forward`. Memory is the proportional set size of all that belongs to a pod, the guests' RAM
(shared memory) in a column of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import rig
from integration import process
from integration.conftest import guest_settings, import_image, program_folder
from integration.cri.crictl import Crictl, Pod
from integration.cri.daemon import CriContainerd
from integration.ctr import Ctr

HANDLERS = ("kata-py", "runc")
PODS = (1, 5, 10)
DOWNLOAD_MIB = 128
PORT, LOCAL_PORT = 7003, 17003
SERVE = f"exec nc -ll -p {PORT} -e dd if=/dev/zero bs=1M count={DOWNLOAD_MIB} 2>/dev/null"
# Bytes and seconds of reading an address to its end.
READ = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
total, began = 0, time.monotonic()
while data := s.recv(1 << 20):
    total += len(data)
print(total, time.monotonic() - began)
"""


@contextmanager
def cri(options: argparse.Namespace) -> Iterator[CriContainerd]:
    settings = f"{guest_settings(options.guest, 'auto')}{options.settings}\n"
    programs = program_folder("containerd", options.containerd)
    daemon = CriContainerd(
        options.containerd, programs, rig.CHECKOUT / "cmd", settings, "info", snapshotter="overlayfs"
    )
    try:
        daemon.tool("template", "create")
        daemon.start()
        with tempfile.TemporaryDirectory() as folder:
            for name, extra in (("image.tar", []), ("pause.tar", ["--pause"])):
                path = Path(folder, name)
                subprocess.run([rig.CHECKOUT / "hack/busybox-image", *extra, path], check=True)
                import_image(Ctr(daemon, rig.RUNTIME, "overlayfs"), path, "overlayfs")
        yield daemon
    finally:
        daemon.stop()
        daemon.remove()


def first_line(pod: Pod) -> None:
    """A new container until its first line is in its log."""
    container = pod.run("sh", "-c", "echo up; exec sleep 100000")
    log = Path(pod.crictl.status(container)["logPath"])
    while not log.read_bytes().endswith(b"up\n"):
        time.sleep(0.002)


def starts(crictl: Crictl) -> tuple[float, float]:
    """Seconds to a pod's first line, and to that of a second container in it."""
    began = time.monotonic()
    pod = crictl.run_pod()
    first_line(pod)
    first = time.monotonic()
    first_line(pod)
    second = time.monotonic()
    pod.remove()
    return first - began, second - first


def read_mb_s(crictl: Crictl, address: str, port: int) -> float:
    command = ["nsenter", f"--net={crictl.daemon.net}", "python3", "-c", READ, address, str(port)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    total, seconds = int(said[0]), float(said[1])
    assert total == DOWNLOAD_MIB << 20, f"{total} bytes came"
    return total / seconds / 1e6


def throughput(crictl: Crictl, rounds: int) -> tuple[float, float]:
    """MB/s from a pod to the node, through the bridge and through port-forward."""
    pod = crictl.run_pod()
    container = pod.run("sh", "-c", SERVE)
    while f":{PORT}" not in crictl.sh(container, "netstat -ltn"):
        time.sleep(0.05)
    address = pod.addresses[0]
    with crictl.spawn("port-forward", pod.id, f"{LOCAL_PORT}:{PORT}", stdin=subprocess.DEVNULL) as forwarder:
        assert forwarder.stdout and b"Forwarding from" in forwarder.stdout.readline()
        network, forward = [], []
        for _ in range(rounds):
            network.append(read_mb_s(crictl, address, PORT))
            forward.append(read_mb_s(crictl, "127.0.0.1", LOCAL_PORT))
        forwarder.terminate()
    pod.remove()
    return statistics.median(network), statistics.median(forward)


def memory(crictl: Crictl) -> dict[int, tuple[float, float]]:
    """By the number of pods with one idle container each: MiB of PSS for one pod, and of guest RAM."""
    before = set(process.marked(str(crictl.daemon.root)))
    pods: list[Pod] = []
    found = {}
    for count in PODS:
        while len(pods) < count:
            pods.append(crictl.run_pod())
            first_line(pods[-1])
        items = [item for pid, item in process.marked(str(crictl.daemon.root)).items() if pid not in before]
        ram = rig.pss_mib(items, ("Pss_Shmem:",))
        found[count] = (rig.pss_mib(items) / count, ram / count)
    for pod in pods:
        pod.remove()
    return found


def main() -> None:
    parser = rig.arguments(__doc__ or "")
    parser.add_argument("--runs", type=int, default=10, help="starts of each runtime")
    options = parser.parse_args()
    result: dict[str, object] = {}
    lines: list[str] = []
    program = program_folder("crictl") / "crictl"
    with cri(options) as daemon:
        crictl = Crictl(daemon, program, HANDLERS[0])
        crictl.wait_ready()
        taken: dict[str, list[tuple[float, float]]] = {handler: [] for handler in HANDLERS}
        for _ in range(options.runs):  # in turns: what disturbs one disturbs the other
            for crictl.handler in HANDLERS:
                taken[crictl.handler].append(starts(crictl))
        for handler in HANDLERS:
            crictl.handler = handler
            pod_s, second_s = zip(*taken[handler], strict=True)
            network, forward = throughput(crictl, 3)
            result[handler] = {
                "pod_s": round(statistics.median(pod_s), 3),
                "pod_s_spread": [round(min(pod_s), 3), round(max(pod_s), 3)],
                "second_container_s": round(statistics.median(second_s), 3),
                "network_mb_s": round(network, 1),
                "port_forward_mb_s": round(forward, 1),
                "pss_mib": {},
                "guest_ram_mib": {},
            }
            for count, (pss, ram) in memory(crictl).items():
                result[handler]["pss_mib"][count] = round(pss, 1)  # type: ignore[index]
                result[handler]["guest_ram_mib"][count] = round(ram, 1)  # type: ignore[index]
    for name in (
        "pod_s",
        "second_container_s",
        "network_mb_s",
        "port_forward_mb_s",
        "pss_mib",
        "guest_ram_mib",
    ):
        lines.append(f"{name:20}" + "".join(f"{h}: {result[h][name]}   " for h in HANDLERS))  # type: ignore[index]
    rig.report(options, result, lines)


main()
