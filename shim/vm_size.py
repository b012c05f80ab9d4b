"""How large a sandbox's VM must be for what its containers may use: arithmetic on limits.

Memory is that of the settings, which is for guest and agent, and the containers' limits on top of it. There are as many
CPUs as the containers may use together, but those of the settings at least. A limit that is missing adds nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from math import ceil
from typing import Any

from shim.value import Value

# What CRI writes: the sums of the containers' limits as kubelet reckons them; 0 or nothing is no limit.
_MEMORY = "io.kubernetes.cri.sandbox-memory"  # bytes
_QUOTA, _PERIOD = "io.kubernetes.cri.sandbox-cpu-quota", "io.kubernetes.cri.sandbox-cpu-period"

_MIB = 1 << 20
# Sizes are rounded up, so that a VM grows seldom, which it can do a few times only: in these steps up to the size of
# the second one, then doubled.
_STEP_MIB, _LARGE_MIB = 256, 1024
# The kernel's, of cpu.cfs_period_us.
_DEFAULT_PERIOD_US = 100_000


class Size(Value):
    """Of a VM."""

    memory_mib: int
    vcpus: int

    def at_most(self, most: Size) -> Size:
        return Size(min(self.memory_mib, most.memory_mib), min(self.vcpus, most.vcpus))

    def at_least(self, least: Size) -> Size:
        return Size(max(self.memory_mib, least.memory_mib), max(self.vcpus, least.vcpus))

    def __str__(self) -> str:
        return f"{self.memory_mib} MiB and {self.vcpus} CPUs"


class Demand(Value):
    """The limits of a container, or of a pod: bytes of memory, microseconds of CPU time in each period; 0 for none."""

    memory: int = 0
    quota_us: int = 0
    period_us: int = _DEFAULT_PERIOD_US

    @property
    def cpus(self) -> Fraction:
        return Fraction(self.quota_us, self.period_us)

    def updated(self, resources: Mapping[str, Any]) -> Demand:
        """After an update by the runtime spec's object of this name, in which what is missing stays as it is."""
        memory, cpu = (_mapping(resources, name) for name in ("memory", "cpu"))
        return Demand(
            _limit(memory, "limit", self.memory),
            _limit(cpu, "quota", self.quota_us),
            _limit(cpu, "period", 0) or self.period_us,
        )


def of_pod(annotations: Mapping[str, Any]) -> Demand:
    """Of all containers of a pod together, by what CRI says of its sandbox."""
    period_us = _limit(annotations, _PERIOD, 0)
    quota_us = _limit(annotations, _QUOTA, 0) if period_us else 0
    return Demand(_limit(annotations, _MEMORY, 0), quota_us, period_us or _DEFAULT_PERIOD_US)


def needed(base: Size, demands: Iterable[Demand]) -> Size:
    """The VM for all of these, where `base` is enough for containers without limits."""
    demands = list(demands)
    memory = sum(demand.memory for demand in demands)
    cpus = ceil(sum(demand.cpus for demand in demands))
    memory_mib = _rounded(base.memory_mib + -(-memory // _MIB)) if memory else base.memory_mib
    return Size(memory_mib, max(base.vcpus, cpus))


def _rounded(memory_mib: int) -> int:
    step = _STEP_MIB
    while memory_mib > step * (_LARGE_MIB // _STEP_MIB):
        step *= 2
    return -(-memory_mib // step) * step


def _limit(values: Mapping[str, Any], name: str, missing: int) -> int:
    """0 for what is no limit. What makes no sense is for others to refuse: it is none either."""
    value = values.get(name)
    if value is None:
        return missing
    try:
        return max(0, int(value))
    except (TypeError, ValueError, OverflowError):
        return 0


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}
