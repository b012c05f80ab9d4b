"""The clock of an emulated guest: the TSC, if the kernel knows how fast it counts, else the ACPI timer.

Without KVM nobody tells the kernel the TSC's rate. It measures it while it boots, which fails when the host gives
the VM no CPU at that moment: 8 times too fast was seen, in every VM restored from such a template. So it begins
with the ACPI timer, whose rate is fixed (`clocksource=acpi_pm`), but which takes longer to read. The scheduler's
clock is the TSC in any case: the CPU time of a thread that does not wait tells how far that is off.

Source: Linux Documentation/ABI/testing/sysfs-devices-system-clocksource; arch/x86/kernel/tsc.c.
"""

from __future__ import annotations

import time

from shim.log import Log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

SYSTEM = "/sys/devices/system/clocksource/clocksource0"
# Interrupts and other threads take a little of the time; a wrong measurement is off by far more.
_TOLERANCE = 0.03
_TRIES = 10
_WINDOW_NS = 20_000_000
_APART_NS = 100_000


def tsc_rate(
    real_ns: Callable[[], int] = time.monotonic_ns, used_ns: Callable[[], int] = time.thread_time_ns
) -> float:
    """How fast the TSC's clock runs, measured by the ACPI timer's: 1 when the kernel knows its rate."""
    began, used = _both(real_ns, used_ns)
    while real_ns() < began + _WINDOW_NS:
        pass
    ended, used_then = _both(real_ns, used_ns)
    return (used_then - used) / (ended - began)


def _both(real_ns: Callable[[], int], used_ns: Callable[[], int]) -> tuple[int, int]:
    """Two clocks at one time, as nearly as can be had."""
    for _ in range(_TRIES):
        before = real_ns()
        used = used_ns()
        after = real_ns()
        if after - before < _APART_NS:
            break
    return (before + after) // 2, used


def choose(log: Log, directory: str = SYSTEM, rate: Callable[[], float] = tsc_rate) -> None:
    """Use the TSC if it can be trusted. Nothing happens where the ACPI timer is not the clock."""
    path = f"{directory}/current_clocksource"
    with open(path) as file:
        if file.read().strip() != "acpi_pm":
            return
    for _ in range(_TRIES):
        measured = rate()
        if abs(measured - 1) < _TOLERANCE:
            with open(path, "w") as file:
                file.write("tsc")
            return
    log.warning(
        "the kernel does not know how fast the TSC counts: the clock is slow to read", rate=round(measured, 3)
    )
