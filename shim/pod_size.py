"""How large a pod's VM must be, by what its sandbox's annotations say of its containers' limits.

Sizes are rounded up: each size has a template of its own, and the first pod of a size boots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What CRI writes: the sums of the containers' limits as kubelet reckons them; 0 or nothing is no limit.
_MEMORY = "io.kubernetes.cri.sandbox-memory"  # bytes
_QUOTA, _PERIOD = "io.kubernetes.cri.sandbox-cpu-quota", "io.kubernetes.cri.sandbox-cpu-period"

_MIB = 1 << 20
# In these steps up to the size of the second one, then doubled.
_STEP_MIB, _LARGE_MIB = 256, 1024


def memory_mib(base_mib: int, annotations: Mapping[str, Any]) -> int:
    """The containers' limit on top of `base_mib`, which is for guest and agent; without a limit the base alone."""
    limit = _number(annotations, _MEMORY)
    if limit <= 0:
        return base_mib
    wanted = base_mib + -(-limit // _MIB)
    step = _STEP_MIB
    while wanted > step * (_LARGE_MIB // _STEP_MIB):
        step *= 2
    return -(-wanted // step) * step


def vcpus(base: int, annotations: Mapping[str, Any]) -> int:
    """As many as the containers may use together, but `base` at least."""
    quota, period = _number(annotations, _QUOTA), _number(annotations, _PERIOD)
    if quota <= 0 or period <= 0:
        return base
    return max(base, -(-quota // period))


def _number(annotations: Mapping[str, Any], name: str) -> int:
    """0 for what is missing or makes no sense: the annotations are no user's."""
    try:
        return int(annotations.get(name, 0))
    except (TypeError, ValueError):
        return 0
