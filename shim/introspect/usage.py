"""A container's use of the guest's resources, from what the Task service's Stats answers in either form."""

from __future__ import annotations

from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.errors import DataLoss
from shim.pb.io.containerd.cgroups import v1, v2
from shim.value import Value


class Usage(Value):
    """CPU time in seconds, memory in bytes, processes and threads."""

    cpu_s: float
    memory: int
    pids: int


def usage(stats: AnyMessage) -> Usage:
    """DataLoss for an answer that is neither of cgroups v1 nor of v2."""
    match stats.type_url.rpartition("/")[2]:
        case "io.containerd.cgroups.v1.Metrics":
            one = v1.Metrics.FromString(stats.value)
            return Usage(one.cpu.usage.total / 1e9, one.memory.usage.usage, one.pids.current)
        case "io.containerd.cgroups.v2.Metrics":
            two = v2.Metrics.FromString(stats.value)
            return Usage(two.cpu.usage_usec / 1e6, two.memory.usage, two.pids.current)
    raise DataLoss(f"statistics of the unknown kind {stats.type_url!r}")
