"""Many execs, one after another and at once, and what they may not leave behind on the host and in the guest.

`--execs 1000` does it a thousand times (and -s shows the figures), hack/bench/burst with bursts of output.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration.ctr import Ctr
from integration.exec import Exec, opened, read_all
from integration.guest_run import GuestRunner
from integration.sandbox import members

AT_ONCE = 50
# Allocators keep some for the next time; ten forgotten KiB of each exec would be more.
MEMORY_KIB = 1024

LOOK = """
echo fds $(ls /guest/proc/1/fd | wc -l)
echo processes $(ls -d /guest/proc/[0-9]* | wc -l)
grep RssAnon /guest/proc/1/status
"""


class Holdings:
    """What a sandbox holds: descriptors, processes, and memory in KiB, by whom."""

    def __init__(self, ctr: Ctr, box: str) -> None:
        self._members = members(ctr, box)
        shim = next(pid for pid, item in self._members.items() if item.role == "shim")
        self._guest = GuestRunner(ctr, box, shim)

    def look(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts, which must stay, and memory, which may grow a little."""
        counts, memory = {}, {}
        for pid, item in self._members.items():
            if item.role in ("shim", "device"):
                counts[f"{item.role} fds"] = len(os.listdir(f"/proc/{pid}/fd"))
                memory[item.role] = int(_field(Path(f"/proc/{pid}/status").read_text(), "RssAnon:"))
        counts["virtiofsd fds"] = sum(
            len(os.listdir(f"/proc/{pid}/fd"))
            for pid, item in self._members.items()
            if item.role == "virtiofsd"
        )
        seen = self._guest.run("sh", "-c", LOOK)
        counts["agent fds"] = int(_field(seen, "fds"))
        counts["guest processes"] = int(_field(seen, "processes"))
        memory["agent"] = int(_field(seen, "RssAnon:"))
        return counts, memory

    def settled(self) -> tuple[dict[str, int], dict[str, int]]:
        """The first look with the counts of the one before: streams are closed behind the exit."""
        counts, memory = self.look()
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            time.sleep(1)
            before, (counts, memory) = counts, self.look()
            if counts == before:
                break
        return counts, memory


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}\s+(\d+)", text, re.MULTILINE)
    assert found, f"no {name} in {text!r}"
    return found[1]


def turn(address: str, box: str, number: int) -> float:
    """One exec with all three streams; it says and ends with what only it was told. The seconds it took."""
    began = time.monotonic()
    script = f"read line; echo $line; echo {number} >&2; exit {number % 256}"
    run = Exec(address, box, "sh", "-c", script, streams=("stdin", "stdout", "stderr"))
    with opened(run.reader()) as stdout, opened(run.reader("stderr")) as stderr:
        run.start()
        with opened(run.writer()) as stdin:
            os.write(stdin, b"line %d\n" % number)
        assert read_all(stdout) == b"line %d\n" % number
        assert read_all(stderr) == b"%d\n" % number
    assert run.finish() == number % 256
    return time.monotonic() - began


@pytest.mark.once
@pytest.mark.vm
def test_many_execs_leave_nothing_behind(ctr: Ctr, box: str, request: pytest.FixtureRequest) -> None:
    in_a_row = request.config.getoption("--execs")
    address, holdings = ctr.daemon.shim_address(box), Holdings(ctr, box)
    # The agent remembers the exit codes of the last 32 execs, and everybody's first time costs memory.
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: turn(address, box, number), range(AT_ONCE)))
    counts, memory = holdings.settled()
    times = [turn(address, box, number) for number in range(in_a_row)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda number: turn(address, box, number), range(AT_ONCE)))
    counts_now, memory_now = holdings.settled()
    first, last = (statistics.median(part) for part in (times[: in_a_row // 10], times[-in_a_row // 10 :]))
    print(f"first tenth {first:.3f} s, last {last:.3f} s; before {counts} {memory}, after {memory_now}")
    assert counts_now == counts
    grown = {who: memory_now[who] - memory[who] for who in memory}
    assert all(kib < MEMORY_KIB for kib in grown.values()), grown
    assert last < 2 * first, "and nothing becomes slower"
