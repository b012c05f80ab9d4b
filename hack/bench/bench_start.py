"""How long starting takes: the start subcommand, `ctr run true` beside a bare QEMU boot of the same guest, an exec.

The bare boot is QEMU with the same machine, kernel, image and memory, no devices and no host side, until the agent
says on the console that it is ready. Runs of both are taken in turns. Memory is the proportional set size of one
idle sandbox's processes, the guest's RAM left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import rig
from integration.ctr import Ctr
from integration.ttrpc import Task
from shim.config.load import load
from shim.hypervisor.api import VmSpec
from shim.hypervisor.qemu.driver import QemuHypervisor
from shim.log import Log

READY = "agent ready"


class Ready(Log):
    """A log that waits for the guest's line on the console."""

    def __init__(self) -> None:
        super().__init__(2, "error")
        self.seen = asyncio.Event()

    def debug(self, message: str, **fields: object) -> None:
        if READY in str(fields.get("line", "")):
            self.seen.set()


async def bare_boot(settings: Path) -> float:
    """Seconds from QEMU's start to the agent's line on the console."""
    config = load({"KATA_PY_CONFIG": str(settings)})
    log = Ready()
    with tempfile.TemporaryDirectory() as folder:
        hypervisor = QemuHypervisor(log, config.hypervisor)
        began = time.monotonic()
        spec = VmSpec(
            "bench", Path(folder), config.kernel, config.initrd, ("agent.passfd_listener_port=1027",),
            config.memory_mib, config.vcpus, config.accelerator,
        )  # fmt: skip
        await hypervisor.start(spec)
        try:
            await hypervisor.resume()
            async with asyncio.timeout(60):
                await log.seen.wait()
            return time.monotonic() - began
        finally:
            await hypervisor.stop()


def start_subcommand(ctr: Ctr, number: int) -> float:
    """Seconds of `start`, as containerd runs it; the daemon it leaves is shut down."""
    name = f"start{number}"
    with tempfile.TemporaryDirectory() as bundle:
        Path(bundle, "config.json").write_text(json.dumps({"ociVersion": "1.0.2", "annotations": {}}))
        os.mkfifo(Path(bundle, "log"))
        log = os.open(Path(bundle, "log"), os.O_RDWR | os.O_NONBLOCK)
        program = rig.CHECKOUT / "cmd/containerd-shim-kata-py-v2"
        flags = ["-namespace", ctr.daemon.namespace, "-address", ctr.daemon.address]
        environment = {**ctr.daemon.env, "TTRPC_ADDRESS": f"{ctr.daemon.address}.ttrpc"}
        began = time.monotonic()
        done = subprocess.run(
            [program, *flags, "-publish-binary", "containerd", "-id", name, "start"],
            cwd=bundle, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=True,
        )  # fmt: skip
        seconds = time.monotonic() - began
        with Task(done.stdout.decode().strip().removeprefix("unix://")) as task:
            answer = task.call("Shutdown", f1=name, f2=1)
            assert answer.code == 0, answer.message
        os.close(log)
    return seconds


def timed(ctr: Ctr, *args: str) -> float:
    began = time.monotonic()
    ctr(*args).ok()
    return time.monotonic() - began


def main() -> None:
    parser = rig.arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"start": [], "run_true": [], "bare_boot": [], "exec": []}
    with rig.containerd(options) as ctr:
        for number in range(options.rounds):
            times["run_true"].append(timed(ctr, *ctr.run_args(ctr.new_id(), "true")))
            times["bare_boot"].append(asyncio.run(bare_boot(ctr.daemon.settings)))
            times["start"].append(start_subcommand(ctr, number))
        box = ctr.detached("sleep", "100000", options=["--null-io"])
        found = rig.processes(ctr)
        pss = {role: rig.pss_mib(found[role]) for role in ("shim", "device", "virtiofsd")}
        times["exec"] = [timed(ctr, *ctr.exec_args(box, "true")) for _ in range(options.rounds)]
    median = {name: statistics.median(values) for name, values in times.items()}
    result: dict[str, object] = {
        "start_ms": round(median["start"] * 1000, 1),
        "run_true_s": round(median["run_true"], 3),
        "bare_boot_s": round(median["bare_boot"], 3),
        "exec_ms": round(median["exec"] * 1000, 1),
        "pss_mib": pss,
        "run_true_to_bare_boot": round(median["run_true"] / median["bare_boot"], 2),
    }
    lines = [
        f"{name:10} {median[name] * 1000:8.1f} ms   ({min(values) * 1000:.1f} to {max(values) * 1000:.1f})"
        for name, values in times.items()
    ]
    lines.append(f"run true / bare boot {result['run_true_to_bare_boot']}   PSS in MiB {pss}")
    rig.report(options, result, lines)


if __name__ == "__main__":
    main()
