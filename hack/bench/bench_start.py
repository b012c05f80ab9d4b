"""How long starting takes: the start subcommand, `ctr run true` from a template and by a boot, beside a bare QEMU
boot of the same guest, an exec, and eight sandboxes at once.

The bare boot is QEMU with the same machine, kernel, image and memory, no devices and no host side, until the agent
says on the console that it is ready. Runs of all are taken in turns. A sandbox is ready when its agent has answered
and the sandbox is made in the guest, by the shim's own clock; the phases of a start from a template are from a run
with the log at debug level, in milliseconds since ctr was started. Memory is the proportional set size of one
idle sandbox's processes, the guest's RAM left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import statistics
import subprocess
import tempfile
import time
from datetime import datetime
from pathlib import Path

import rig
from integration.ctr import Ctr
from integration.ttrpc import Task
from shim import vm
from shim.config.load import load
from shim.hypervisor.qemu.driver import QemuHypervisor
from shim.log import Log

READY = "agent ready"
UP = re.compile(r'msg="sandbox is up".* seconds=([0-9.]+).* restored=(True|False)')
STAMP = re.compile(r'time="([^."]+)(\.[0-9]+)Z"')
# What the log says, by the name of what is done then.
PHASES = {
    "vmm": 'msg="QEMU started"',
    "cpus": "name=RESUME",
    "shim": 'msg="the shim serves"',
    "sandbox": 'msg="sandbox is up"',
    "create": "method=Create ",
    "start": "method=Start ",
    "exit": "method=Wait ",
    "delete": "method=Delete ",
    "shutdown": 'msg="the shim ends"',
}


async def bare_boot(settings: Path) -> float:
    """Seconds from QEMU's start to the agent's line on the console."""
    config = load({"KATA_PY_CONFIG": str(settings)})
    hypervisor = QemuHypervisor(Log(2, "error"), config.hypervisor)
    began = time.monotonic()
    await hypervisor.start(vm.spec(config, "bench", Path("/nonexistent")))
    try:
        await hypervisor.resume()
        async with asyncio.timeout(60):
            await hypervisor.console_line(READY)
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


class Starts:
    """`ctr run true` in one of two modes, "auto" (from a template) or "off"."""

    def __init__(self, ctr: Ctr, template: str) -> None:
        self.ctr, self.template = ctr, template
        self.run_s: list[float] = []
        self.ready_s: list[float] = []

    def run(self) -> None:
        self.ctr.daemon.set_for_shims(f'template = "{self.template}"')
        offset = self.ctr.daemon.log_size()
        self.run_s.append(timed(self.ctr, *self.ctr.run_args(self.ctr.new_id(), "true")))
        found = UP.search(self.ctr.daemon.log_since(offset))
        assert found and found[2] == str(self.template == "auto"), "the sandbox came up in the other way"
        self.ready_s.append(float(found[1]))

    def at_once(self, count: int) -> float:
        """Seconds until as many starts at the same time are done."""
        self.ctr.daemon.set_for_shims(f'template = "{self.template}"')
        began = time.monotonic()
        commands = [self.ctr.run_args(self.ctr.new_id(), "true") for _ in range(count)]
        for child in [self.ctr.spawn(*command) for command in commands]:
            _, errors = child.communicate()
            assert child.returncode == 0, errors
        return time.monotonic() - began

    def phases(self) -> dict[str, float]:
        """What is done when, in milliseconds."""
        self.ctr.daemon.set_for_shims(f'template = "{self.template}"\nlog_level = "debug"')
        offset, began = self.ctr.daemon.log_size(), time.time()
        self.ctr(*self.ctr.run_args(self.ctr.new_id(), "true")).ok()
        done = {"ctr": time.time()}
        for line in self.ctr.daemon.log_since(offset).splitlines():
            stamp = STAMP.match(line)
            for name, text in PHASES.items():
                if stamp and text in line:
                    whole = datetime.fromisoformat(f"{stamp[1]}+00:00").timestamp()
                    done.setdefault(name, whole + float(stamp[2]))
        return {name: round((at - began) * 1000, 1) for name, at in sorted(done.items(), key=lambda i: i[1])}


def main() -> None:
    parser = rig.arguments(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    times: dict[str, list[float]] = {"start": [], "bare_boot": [], "exec": [], "eight": []}
    with rig.containerd(options) as ctr:
        restored, cold = Starts(ctr, "auto"), Starts(ctr, "off")
        for number in range(options.rounds):
            restored.run()
            cold.run()
            times["bare_boot"].append(asyncio.run(bare_boot(ctr.daemon.settings)))
            times["start"].append(start_subcommand(ctr, number))
        times |= {"run_true": restored.run_s, "template_ready": restored.ready_s}
        times |= {"run_true_cold": cold.run_s, "cold_ready": cold.ready_s}
        times["eight"] = [restored.at_once(8) for _ in range(3)]
        phases = restored.phases()
        ctr.daemon.set_for_shims("")
        box = ctr.detached("sleep", "100000", options=["--null-io"])
        found = rig.processes(ctr)
        pss = {role: rig.pss_mib(found[role]) for role in ("shim", "device", "virtiofsd")}
        times["exec"] = [timed(ctr, *ctr.exec_args(box, "true")) for _ in range(options.rounds)]
    median = {name: statistics.median(values) for name, values in times.items()}
    seconds = ("run_true", "run_true_cold", "template_ready", "cold_ready", "bare_boot")
    result: dict[str, object] = {
        "start_ms": round(median["start"] * 1000, 1),
        **{f"{name}_s": round(median[name], 3) for name in seconds},
        "exec_ms": round(median["exec"] * 1000, 1),
        "eight_at_once_s": round(median["eight"], 3),
        "pss_mib": pss,
        "phases_ms": phases,
        "run_true_to_cold": round(median["run_true"] / median["run_true_cold"], 2),
        "run_true_cold_to_bare_boot": round(median["run_true_cold"] / median["bare_boot"], 2),
        "spread_s": {name: [round(min(values), 3), round(max(values), 3)] for name, values in times.items()},
    }
    lines = [
        f"{name:14} {median[name] * 1000:8.1f} ms   ({min(values) * 1000:.1f} to {max(values) * 1000:.1f})"
        for name, values in times.items()
    ]
    lines.append(f"run true / cold {result['run_true_to_cold']}   PSS in MiB {pss}")
    lines.append("phases in ms: " + ", ".join(f"{name} {at:.0f}" for name, at in phases.items()))
    rig.report(options, result, lines)


if __name__ == "__main__":
    main()
