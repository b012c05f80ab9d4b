"""Execs that say 64 KiB to 8 MiB in one burst and exit, and what of it arrives.

Every other one is ctr's, whose client deletes the process as soon as its exit is told. The others are on FIFOs held
here: one thread reads while Wait, and Delete right behind it, are called without looking at how far it has come.
What arrives is compared byte by byte.
"""

from __future__ import annotations

import math
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import rig
from integration.conftest import PAYLOAD
from integration.ctr import Ctr
from integration.exec import read_all

LEAST, MOST = 64 << 10, 8 << 20


@dataclass(frozen=True)
class Burst:
    """One run: how much was said, and what of it arrived; `gap` says which bytes did not."""

    size: int
    lost: int
    gap: str


def compare(size: int, got: bytes) -> Burst:
    wanted = PAYLOAD[:size]
    if got == wanted:
        return Burst(size, 0, "")
    at = next((n for n, (a, b) in enumerate(zip(wanted, got, strict=False)) if a != b), min(size, len(got)))
    resumed = wanted.find(got[at : at + 64], at) if at + 64 <= len(got) else -1
    wrong = sum(a != b for a, b in zip(wanted, got, strict=False))
    lost = size - len(got) if len(got) < size else max(wrong, 1)
    until = resumed if resumed >= 0 else size
    return Burst(size, lost, f"{len(got)} of {size} bytes, without {at} to {until}")


def by_ctr(ctr: Ctr, box: str, size: int) -> Burst:
    return compare(size, ctr.exec(box, "head", "-c", str(size), "/payload").ok().out)


def by_fifo(address: str, box: str, size: int) -> Burst:
    run = rig.Exec(address, box, "head", "-c", str(size), "/payload")
    got: list[bytes] = []
    reading = threading.Thread(target=lambda: got.append(read_all(run.stdout)))
    reading.start()
    run.start()
    code = run.wait()
    deleted = run.call("Delete")
    reading.join()
    run.close()
    assert (code, deleted.code) == (0, 0), (code, deleted.message)
    return compare(size, got[0])


def main() -> None:
    parser = rig.arguments(__doc__ or "")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    # As many small ones as large ones on a logarithmic scale, and both ends of it.
    sizes = [LEAST, MOST]
    sizes += [
        round(math.exp(chance.uniform(math.log(LEAST), math.log(MOST)))) for _ in range(options.runs - 2)
    ]
    with rig.containerd(options, {"/payload": PAYLOAD}) as ctr:
        box = ctr.detached("sleep", "100000", options=["--null-io"])
        address = ctr.daemon.shim_address(box)

        def turn(number: int) -> Burst:
            size = sizes[number]
            return by_fifo(address, box, size) if number % 2 else by_ctr(ctr, box, size)

        with ThreadPoolExecutor(options.at_once) as pool:
            bursts = list(pool.map(turn, range(options.runs)))
    gaps = {number: burst.gap for number, burst in enumerate(bursts) if burst.lost}
    result: dict[str, object] = {
        "runs": len(bursts),
        "bytes": sum(burst.size for burst in bursts),
        "bytes_lost": sum(burst.lost for burst in bursts),
        "gaps": gaps,
    }
    lines = [f"run {number}: {gap}" for number, gap in gaps.items()]
    lines.append(f"{result['runs']} runs, {result['bytes']} bytes, {result['bytes_lost']} lost")
    rig.report(options, result, lines)
    if gaps:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
