"""What a container's streams cost: passed FIFOs beside a pipe and a vsock connection in the same guest, the agent's
ReadStdout RPC, and runc's shim on this machine.

All move the same zeros, taken in turns, so that their ratios hold on a noisy machine. CPU time is that of
/proc/<pid>/stat while a container writes --cpu-mib. The round trip of one byte goes to `cat` and back; that of vsock
alone to an echo in Python.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable

import rig
from integration import process
from integration.ctr import Ctr
from integration.guest_run import GuestRunner
from integration.sandbox import members
from past_shim import read_rate, vsock_round_trip
from streams import Box

RUNC = "io.containerd.runc.v2"
STREAMS = 30
MIB = 1 << 20
RATIOS = {
    "passfd_to_rpc": ("passfd_mb_s", "rpc_mb_s"),
    "passfd_to_guest_pipe": ("passfd_mb_s", "guest_pipe_mb_s"),
    "stdin_to_guest_pipe": ("stdin_mb_s", "guest_pipe_mb_s"),
    "round_trip_to_vsock": ("round_trip_us", "vsock_round_trip_us"),
}


def cpu_s_per_gib(box: Box, pids: dict[str, int], mib: int) -> dict[str, float]:
    before = {role: rig.cpu_s(pid) for role, pid in pids.items()}
    box.stdout(mib * MIB)
    return {role: (rig.cpu_s(pid) - before[role]) / (mib / 1024) for role, pid in pids.items()}


def pids(found: dict[int, process.Process]) -> dict[str, int]:
    return {item.role: pid for pid, item in found.items() if item.role in ("shim", "device")}


def box_of(ctr: Ctr) -> tuple[Box, dict[str, int]]:
    name = ctr.detached("sleep", "100000", options=["--null-io"])
    return Box(ctr.daemon.shim_address(name), name), pids(members(ctr, name))


def main() -> None:
    parser = rig.arguments(__doc__ or "")
    parser.add_argument("--mib", type=int, default=64, help="size of one transfer")
    parser.add_argument(
        "--cpu-mib", type=int, default=1024, help="size of the transfer whose CPU time is taken"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = options.mib * MIB
    with rig.containerd(options) as ctr:
        ours, ours_pids = box_of(ctr)
        runc = Ctr(ctr.daemon, RUNC, ctr.snapshotter)
        runc.new_id()  # the number of ours
        theirs, theirs_pids = box_of(runc)
        guest = GuestRunner(ctr, ours.container, ours_pids["shim"])
        measures: dict[str, Callable[[], float]] = {
            "passfd_mb_s": lambda: ours.stdout(size),
            "guest_pipe_mb_s": lambda: ours.pipe(size),
            "stdin_mb_s": lambda: ours.stdin(size),
            "rpc_mb_s": lambda: asyncio.run(read_rate(guest, size)),
            "write_8k_mb_s": lambda: ours.stdout(size // 2, 8 << 10),
            "guest_pipe_8k_mb_s": lambda: ours.pipe(size // 2, 8 << 10),
            "write_100b_mb_s": lambda: ours.stdout(size // 16, 100),
            "guest_pipe_100b_mb_s": lambda: ours.pipe(size // 16, 100),
            "streams_30_mb_s": lambda: ours.at_once(STREAMS, 4 * MIB),
            "round_trip_us": lambda: ours.round_trip() * 1e6,
            "vsock_round_trip_us": lambda: vsock_round_trip(guest) * 1e6,
            "runc_mb_s": lambda: theirs.stdout(size * 4),
            "runc_stdin_mb_s": lambda: theirs.stdin(size * 4),
            "runc_round_trip_us": lambda: theirs.round_trip() * 1e6,
        }
        taken: dict[str, list[float]] = {name: [] for name in measures}
        for _ in range(options.rounds):
            for name, measure in measures.items():
                taken[name].append(measure())
        cpu = cpu_s_per_gib(ours, ours_pids, options.cpu_mib)
        runc_cpu = cpu_s_per_gib(theirs, theirs_pids, options.cpu_mib)
    median = {name: statistics.median(values) for name, values in taken.items()}
    result: dict[str, object] = {
        "shim_cpu_s_per_gib": round(cpu["shim"], 3),
        "device_cpu_s_per_gib": round(cpu["device"], 3),
        "runc_shim_cpu_s_per_gib": round(runc_cpu["shim"], 3),
        **{name: round(value, 1) for name, value in median.items()},
        **{name: round(median[a] / median[b], 2) for name, (a, b) in RATIOS.items()},
        "spread": {name: [round(min(values), 1), round(max(values), 1)] for name, values in taken.items()},
    }
    lines = [
        f"{name:22} {median[name]:8.1f}   ({min(values):.1f} to {max(values):.1f})"
        for name, values in taken.items()
    ]
    lines += [f"{name:22} {result[name]}" for name in RATIOS]
    lines.append(
        f"CPU for a GiB of stdout: shim {cpu['shim']:.3f} s, device {cpu['device']:.3f} s; "
        f"runc's shim {runc_cpu['shim']:.3f} s"
    )
    rig.report(options, result, lines)


if __name__ == "__main__":
    main()
