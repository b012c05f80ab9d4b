"""What a container's output costs: the passed FIFO beside the agent's ReadStdout RPC and a pipe in the guest.

All three move the same zeros in one VM, taken in turns, so that their ratios hold on a noisy machine. The shim's and
the device's CPU time are those of /proc/<pid>/stat while a container writes --cpu-mib.
"""

from __future__ import annotations

import asyncio
import statistics

import rig
from rpc_reader import RpcReader

BLOCK = 64 << 10


def passfd(address: str, box: str, mib: int) -> float:
    """MB/s of one exec's stdout through the passed FIFO."""
    run = rig.Exec(address, box, "dd", "if=/dev/zero", "bs=64k", f"count={(mib << 20) // BLOCK}")
    run.start()
    total, seconds = run.drain()
    assert (run.finish(), total) == (0, mib << 20), f"{total} bytes of {mib << 20}"
    return total / seconds / 1e6


def guest_pipe(address: str, box: str, mib: int) -> float:
    """MB/s of `dd | dd` in the guest, by the guest's clock (hundredths of a second)."""
    count = (mib << 20) // BLOCK
    move = f"dd if=/dev/zero bs=64k count={count} 2>/dev/null | dd of=/dev/null bs=64k 2>/dev/null"
    script = f"read start _ </proc/uptime; {move}; read end _ </proc/uptime; echo $start $end"
    run = rig.Exec(address, box, "sh", "-c", script)
    run.start()
    with open(run.stdout, closefd=False) as stdout:
        start, end = map(float, stdout.read().split())
    assert run.finish() == 0
    return (mib << 20) / (end - start) / 1e6


def main() -> None:
    parser = rig.arguments(__doc__ or "")
    parser.add_argument("--mib", type=int, default=64, help="size of one transfer")
    parser.add_argument(
        "--cpu-mib", type=int, default=1024, help="size of the transfer whose CPU time is taken"
    )
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with rig.containerd(options) as ctr:
        box = ctr.detached("sleep", "100000", options=["--null-io"])
        address = ctr.daemon.shim_address(box)
        found = rig.processes(ctr)
        rates: dict[str, list[float]] = {"passfd": [], "rpc": [], "guest_pipe": []}
        reader = RpcReader(rig.vsock_socket(ctr, box), rig.guest_root(ctr, box, found["shim"][0].pid))
        for _ in range(options.rounds):
            rates["passfd"].append(passfd(address, box, options.mib))
            rates["guest_pipe"].append(guest_pipe(address, box, options.mib))
            rates["rpc"].append(asyncio.run(reader.rate(options.mib)))
        before = {role: rig.cpu_s(found[role][0].pid) for role in ("shim", "device")}
        passfd(address, box, options.cpu_mib)
        gib = options.cpu_mib / 1024
        cpu = {role: (rig.cpu_s(found[role][0].pid) - before[role]) / gib for role in before}
    median = {name: statistics.median(values) for name, values in rates.items()}
    result: dict[str, object] = {
        "shim_cpu_s_per_gib": round(cpu["shim"], 3),
        "device_cpu_s_per_gib": round(cpu["device"], 3),
        **{f"{name}_mb_s": round(value, 1) for name, value in median.items()},
        "passfd_to_rpc": round(median["passfd"] / median["rpc"], 2),
        "passfd_to_guest_pipe": round(median["passfd"] / median["guest_pipe"], 2),
    }
    lines = [
        f"{name:11} {median[name]:8.1f} MB/s   ({min(values):.1f} to {max(values):.1f})"
        for name, values in rates.items()
    ]
    lines += [
        f"passfd / rpc {result['passfd_to_rpc']}   passfd / guest pipe {result['passfd_to_guest_pipe']}",
        f"CPU for a GiB of stdout: shim {cpu['shim']:.3f} s, device {cpu['device']:.3f} s",
    ]
    rig.report(options, result, lines)


if __name__ == "__main__":
    main()
