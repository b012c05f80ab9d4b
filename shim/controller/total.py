"""What the containers of a pod use together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain

from shim.agent.api import ContainerStats, CpuUse, IoCount, MemoryUse


def total(stats: Sequence[ContainerStats]) -> ContainerStats:
    """The sums, without limits, which are each container's own. The network is the pod's: each container tells of the
    same."""
    cpu = [item.cpu for item in stats]
    return ContainerStats(
        cpu=CpuUse(
            total_ns=sum(use.total_ns for use in cpu),
            kernel_ns=sum(use.kernel_ns for use in cpu),
            user_ns=sum(use.user_ns for use in cpu),
            periods=sum(use.periods for use in cpu),
            throttled_periods=sum(use.throttled_periods for use in cpu),
            throttled_ns=sum(use.throttled_ns for use in cpu),
        ),
        memory=_memory([item.memory for item in stats]),
        swap=_memory([item.swap for item in stats]),
        kernel=_memory([item.kernel for item in stats]),
        cache=sum(item.cache for item in stats),
        memory_stat=_counters([item.memory_stat for item in stats]),
        memory_events=_counters([item.memory_events for item in stats]),
        pids=sum(item.pids for item in stats),
        io=_io([item.io for item in stats]),
        network=stats[0].network if stats else (),
    )


def _memory(uses: Sequence[MemoryUse]) -> MemoryUse:
    return MemoryUse(
        usage=sum(use.usage for use in uses),
        max_usage=sum(use.max_usage for use in uses),
        failcnt=sum(use.failcnt for use in uses),
    )


def _counters(found: Sequence[Mapping[str, int]]) -> Mapping[str, int]:
    sums: Counter[str] = Counter()
    for item in found:
        sums.update(item)
    return dict(sums)


def _io(found: Sequence[Mapping[str, tuple[IoCount, ...]]]) -> Mapping[str, tuple[IoCount, ...]]:
    """One counter for each device and operation, or a reader would take the last one for the whole."""
    sums: dict[str, Counter[tuple[int, int, str]]] = {}
    for name, counts in chain.from_iterable(item.items() for item in found):
        sums.setdefault(name, Counter()).update({(c.major, c.minor, c.op): c.value for c in counts})
    return {
        name: tuple(IoCount(*key, value) for key, value in counter.items()) for name, counter in sums.items()
    }
