"""StatsContainer's answer in our own types, every number and length checked: it comes from the guest."""

from __future__ import annotations

from itertools import islice

from shim.agent.api import ContainerStats, CpuUse, IoCount, MemoryUse, NetworkUse
from shim.pb import grpc

_MASK64 = (1 << 64) - 1
# cgroup v1 says "no limit" with the largest number of whole pages, and agents differ in what they say for v2's "max".
_UNLIMITED = 1 << 62
_MAX_CPUS, _MAX_DEVICES, _MAX_PAGE_SIZES, _MAX_COUNTERS = 1024, 256, 16, 256
_MAX_NAME = 64
# Where our agent puts the counters of memory.events, for which the message has no place.
_EVENTS = "memory.events."

_IO_LISTS = (
    "io_service_bytes_recursive",
    "io_serviced_recursive",
    "io_queued_recursive",
    "io_service_time_recursive",
    "io_wait_time_recursive",
    "io_merged_recursive",
    "io_time_recursive",
    "sectors_recursive",
)
_NETWORK = tuple(
    f"{way}_{what}" for way in ("rx", "tx") for what in ("bytes", "packets", "errors", "dropped")
)


def container_stats(answer: grpc.StatsContainerResponse) -> ContainerStats:
    group = answer.cgroup_stats
    cpu, throttling = group.cpu_stats.cpu_usage, group.cpu_stats.throttling_data
    memory = group.memory_stats
    counters = {name: _number(value) for name, value in islice(memory.stats.items(), _MAX_COUNTERS)}
    return ContainerStats(
        cpu=CpuUse(
            total_ns=_number(cpu.total_usage),
            kernel_ns=_number(cpu.usage_in_kernelmode),
            user_ns=_number(cpu.usage_in_usermode),
            percpu_ns=tuple(map(_number, cpu.percpu_usage[:_MAX_CPUS])),
            periods=_number(throttling.periods),
            throttled_periods=_number(throttling.throttled_periods),
            throttled_ns=_number(throttling.throttled_time),
        ),
        memory=_memory(memory.usage),
        swap=_memory(memory.swap_usage),
        kernel=_memory(memory.kernel_usage),
        cache=_number(memory.cache),
        memory_stat={name: value for name, value in counters.items() if not name.startswith(_EVENTS)},
        memory_events={
            name.removeprefix(_EVENTS): value for name, value in counters.items() if name.startswith(_EVENTS)
        },
        pids=_number(group.pids_stats.current),
        pids_limit=_limit(group.pids_stats.limit),
        io={name: _io(getattr(group.blkio_stats, name)) for name in _IO_LISTS},
        hugetlb={
            name[:_MAX_NAME]: MemoryUse(_number(use.usage), _number(use.max_usage), _number(use.failcnt))
            for name, use in islice(group.hugetlb_stats.items(), _MAX_PAGE_SIZES)
        },
        network=tuple(map(_network, answer.network_stats[:_MAX_DEVICES])),
    )


def _number(value: int) -> int:
    """A varint of ten bytes has room for more than 64 bits."""
    return value & _MASK64


def _limit(value: int) -> int | None:
    return None if value == 0 or value >= _UNLIMITED else value


def _memory(use: grpc.MemoryData) -> MemoryUse:
    return MemoryUse(_number(use.usage), _number(use.max_usage), _number(use.failcnt), _limit(use.limit))


def _io(entries: list[grpc.BlkioStatsEntry]) -> tuple[IoCount, ...]:
    return tuple(
        IoCount(
            _number(entry.major), _number(entry.minor), entry.op[:_MAX_NAME].lower(), _number(entry.value)
        )
        for entry in entries[:_MAX_DEVICES]
    )


def _network(use: grpc.NetworkStats) -> NetworkUse:
    return NetworkUse(use.name[:_MAX_NAME], *(_number(getattr(use, name)) for name in _NETWORK))
