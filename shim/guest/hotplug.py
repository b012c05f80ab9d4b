"""CPUs and memory that the host has plugged in, put to use by hand: the kernel does not start a CPU by itself.

Source: Linux Documentation/core-api/cpu_hotplug.rst and admin-guide/mm/memory-hotplug.rst.
"""

from __future__ import annotations

import asyncio
import os

from shim import errors

SYSTEM = "/sys/devices/system"
# A CPU shows up a moment after the host has plugged it in.
_APPEAR_S = 5.0
_PAUSE_S = 0.05


async def use_cpus(count: int, directory: str = f"{SYSTEM}/cpu", limit_s: float = _APPEAR_S) -> None:
    """Until `count` CPUs are in use; DeadlineExceeded if there are not so many after `limit_s` seconds."""
    loop = asyncio.get_running_loop()
    until = loop.time() + limit_s
    while True:
        missing = count - _cpus_in_use(directory)
        if missing > 0:
            # The write takes as long as the CPU needs to start: 0.3 s, more where it gets no time. Streams go on.
            missing -= await asyncio.to_thread(_switch_on, directory, "cpu", missing)
        if missing <= 0:
            return
        if loop.time() >= until:
            raise errors.DeadlineExceeded(f"{count - missing} of {count} CPUs are online")
        await asyncio.sleep(_PAUSE_S)


def use_memory(directory: str = f"{SYSTEM}/memory") -> None:
    """Use all memory that there is."""
    if os.path.isdir(directory):
        _switch_on(directory, "memory", 1 << 30)


def _cpus_in_use(directory: str) -> int:
    """The kernel's list, as in "0,2-3", counted."""
    with open(f"{directory}/online") as file:
        ranges = [part.partition("-") for part in file.read().strip().split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in ranges)


def _switch_on(directory: str, kind: str, most: int) -> int:
    """How many of `most` devices, named by `kind` and a number, were off and are on now."""
    done = 0
    for name in sorted(os.listdir(directory)):
        switch = f"{directory}/{name}/online"
        if done < most and name.removeprefix(kind).isdigit() and os.path.exists(switch):  # cpu0 has none
            with open(switch, "r+") as file:
                if file.read().strip() == "0":
                    file.seek(0)
                    file.write("1")
                    done += 1
    return done
