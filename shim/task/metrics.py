"""What a container uses as containerd's metrics: the message of cgroup v1 or of v2, by the host's mode.

containerd's consumers take the one that fits the host's cgroups (CRI, the metrics plugin, ctr) and look into its
sub-messages without asking whether they are there. So all that runc's shim fills are there, and where there is no
limit stands the number that the kernel's own file would give. The guest's cgroups may be of the other version:
counters that go by two names are looked up by both. `shim.task.usage` reads the messages back.

Source: github.com/containerd/cgroups, cgroup1/stats and cgroup2/stats; kernel Documentation: cgroup-v2,
cgroup-v1/memory."""

from __future__ import annotations

import os
from collections.abc import Mapping

from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.agent.api import ContainerStats, IoCount, MemoryUse
from shim.pb.io.containerd.cgroups import v1, v2
from shim.task.convert import any_message

V1, V2 = "io.containerd.cgroups.v1.Metrics", "io.containerd.cgroups.v2.Metrics"
NO_LIMIT_V1, NO_LIMIT_V2 = (1 << 63) - 4096, (1 << 64) - 1

# v1's field: its names in memory.stat of v1 and v2. Each also has a `total_` one, with the cgroups below.
_MEMORY_V1 = {
    "cache": ("cache", "file"),
    "rss": ("rss", "anon"),
    "rss_huge": ("rss_huge", "anon_thp"),
    "mapped_file": ("mapped_file", "file_mapped"),
    "dirty": ("dirty", "file_dirty"),
    "writeback": ("writeback", "file_writeback"),
    "pg_pg_in": ("pgpgin",),
    "pg_pg_out": ("pgpgout",),
    "pg_fault": ("pgfault",),
    "pg_maj_fault": ("pgmajfault",),
    "inactive_anon": ("inactive_anon",),
    "active_anon": ("active_anon",),
    "inactive_file": ("inactive_file",),
    "active_file": ("active_file",),
    "unevictable": ("unevictable",),
}
# v2's fields that have another name in v1's memory.stat; v2's own file always has the field's name.
_MEMORY_V2 = {
    "anon": "rss",
    "file": "cache",
    "file_mapped": "mapped_file",
    "file_dirty": "dirty",
    "file_writeback": "writeback",
    "anon_thp": "rss_huge",
}
_MEMORY_V2_SAME = [
    "kernel_stack",
    "slab",
    "sock",
    "shmem",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
    "slab_reclaimable",
    "slab_unreclaimable",
    "pgfault",
    "pgmajfault",
    "workingset_refault",
    "workingset_activate",
    "workingset_nodereclaim",
    "pgrefill",
    "pgscan",
    "pgsteal",
    "pgactivate",
    "pgdeactivate",
    "pglazyfree",
    "pglazyfreed",
    "thp_fault_alloc",
    "thp_collapse_alloc",
]
_IO_V2 = {"read": "rbytes", "write": "wbytes", "rios": "rios", "wios": "wios"}


def host_is_unified() -> bool:
    """Whether the host's /sys/fs/cgroup is v2. A hybrid counts as v1, as containerd has it."""
    return os.path.exists("/sys/fs/cgroup/cgroup.controllers")


def metrics(stats: ContainerStats, *, unified: bool) -> AnyMessage:
    """The answer of Stats."""
    return any_message(_v2(stats), V2) if unified else any_message(_v1(stats), V1)


# betterproto leaves out a sub-message in which no member was set; one that was set to 0 is enough.


def _v1(stats: ContainerStats) -> v1.Metrics:
    cpu, stat = stats.cpu, stats.memory_stat
    memory = {field: _first(stat, *names) for field, names in _MEMORY_V1.items()}
    memory["cache"] = memory["cache"] or stats.cache
    total = {
        f"total_{field}": _first(stat, *(f"total_{name}" for name in names)) or memory[field]
        for field, names in _MEMORY_V1.items()
    }
    return v1.Metrics(
        hugetlb=[
            v1.HugetlbStat(use.usage, use.max_usage, use.failcnt, size) for size, use in stats.hugetlb.items()
        ],
        pids=v1.PidsStat(stats.pids, stats.pids_limit or 0),
        cpu=v1.CpuStat(
            v1.CpuUsage(cpu.total_ns, cpu.kernel_ns, cpu.user_ns, list(cpu.percpu_ns)),
            v1.Throttle(cpu.periods, cpu.throttled_periods, cpu.throttled_ns),
        ),
        memory=v1.MemoryStat(
            **memory,
            **total,
            hierarchical_memory_limit=_limit(stats.memory, NO_LIMIT_V1),
            hierarchical_swap_limit=_limit(stats.swap, NO_LIMIT_V1),
            usage=_entry(stats.memory),
            swap=_entry(stats.swap),
            kernel=_entry(stats.kernel),
            kernel_tcp=_entry(MemoryUse()),
        ),
        blkio=v1.BlkIoStat(
            **{"io_service_bytes_recursive": []}
            | {name: list(map(_blkio, counts)) for name, counts in stats.io.items()}
        ),
        rdma=v1.RdmaStat([], []),
        network=[v1.NetworkStat(**vars(use)) for use in stats.network],
        memory_oom_control=v1.MemoryOomControl(0, 0, stats.memory_events.get("oom_kill", 0)),
    )


def _v2(stats: ContainerStats) -> v2.Metrics:
    cpu, stat, events = stats.cpu, stats.memory_stat, stats.memory_events
    memory = {field: _first(stat, field, f"total_{old}", old) for field, old in _MEMORY_V2.items()}
    memory |= {field: _first(stat, f"total_{field}", field) for field in _MEMORY_V2_SAME}
    memory["file"] = memory["file"] or stats.cache
    return v2.Metrics(
        pids=v2.PidsStat(stats.pids, NO_LIMIT_V2 if stats.pids_limit is None else stats.pids_limit),
        cpu=v2.CpuStat(
            usage_usec=cpu.total_ns // 1000,
            user_usec=cpu.user_ns // 1000,
            system_usec=cpu.kernel_ns // 1000,
            nr_periods=cpu.periods,
            nr_throttled=cpu.throttled_periods,
            throttled_usec=cpu.throttled_ns // 1000,
        ),
        memory=v2.MemoryStat(
            **memory,  # type: ignore[arg-type]
            usage=stats.memory.usage,
            usage_limit=_limit(stats.memory, NO_LIMIT_V2),
            max_usage=stats.memory.max_usage,
            swap_usage=stats.swap.usage,
            swap_limit=_limit(stats.swap, NO_LIMIT_V2),
            swap_max_usage=stats.swap.max_usage,
        ),
        rdma=v2.RdmaStat([], []),
        io=v2.IoStat(_io_v2(stats.io)),
        hugetlb=[
            v2.HugeTlbStat(use.usage, use.max_usage, size, use.failcnt) for size, use in stats.hugetlb.items()
        ],
        memory_events=v2.MemoryEvents(
            **{
                name: events.get(name, 0)
                for name in ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
            }
        ),
        network=[v2.NetworkStat(**vars(use)) for use in stats.network],
    )


def _first(stat: Mapping[str, int], *names: str) -> int:
    return next((stat[name] for name in names if name in stat), 0)


def _limit(use: MemoryUse, none: int) -> int:
    return none if use.limit is None else use.limit


def _entry(use: MemoryUse) -> v1.MemoryEntry:
    return v1.MemoryEntry(_limit(use, NO_LIMIT_V1), use.usage, use.max_usage, use.failcnt)


def _blkio(count: IoCount) -> v1.BlkIoEntry:
    return v1.BlkIoEntry(op=count.op.capitalize(), major=count.major, minor=count.minor, value=count.value)


def _io_v2(io: Mapping[str, tuple[IoCount, ...]]) -> list[v2.IoEntry]:
    """One entry for each device. v1 has bytes and operations in lists of their own, v2's are all in the first."""
    found: dict[tuple[int, int], v2.IoEntry] = {}
    operations = {"read": "rios", "write": "wios"}
    for name, names in (("io_service_bytes_recursive", _IO_V2), ("io_serviced_recursive", operations)):
        for count in io.get(name, ()):
            if count.op in names:
                place = count.major, count.minor
                entry = found.setdefault(place, v2.IoEntry(*place))
                setattr(entry, names[count.op], count.value)
    return list(found.values())
