"""The numbers in an answer of Stats, whatever cgroup version it speaks of: for people and for Prometheus."""

from __future__ import annotations

from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.errors import InvalidArgument
from shim.pb.io.containerd.cgroups import v1, v2
from shim.task.metrics import NO_LIMIT_V1, NO_LIMIT_V2, V1, V2
from shim.value import Value


class Usage(Value):
    """What one container uses. A limit that is None is none; `working_set_bytes` is what CRI calls so, the memory
    less what the kernel could take back at once. The network is the whole pod's."""

    cpu_ns: int
    memory_bytes: int
    memory_limit_bytes: int | None
    working_set_bytes: int
    oom_kills: int
    pids: int
    pids_limit: int | None
    read_bytes: int
    written_bytes: int
    received_bytes: int
    sent_bytes: int


def usage(answer: AnyMessage) -> Usage:
    """InvalidArgument for an answer that is no such message."""
    kinds = {V1: _from_v1, V2: _from_v2}
    if answer.type_url not in kinds:
        raise InvalidArgument(f"metrics of type {answer.type_url!r}: want one of {', '.join(kinds)}")
    return kinds[answer.type_url](answer.value)


def _from_v1(data: bytes) -> Usage:
    found = v1.Metrics.FromString(data)
    memory, io = found.memory, found.blkio.io_service_bytes_recursive
    return Usage(
        cpu_ns=found.cpu.usage.total,
        memory_bytes=memory.usage.usage,
        memory_limit_bytes=_limit(memory.usage.limit, NO_LIMIT_V1),
        working_set_bytes=max(0, memory.usage.usage - memory.total_inactive_file),
        oom_kills=found.memory_oom_control.oom_kill,
        pids=found.pids.current,
        pids_limit=_limit(found.pids.limit, NO_LIMIT_V1),
        read_bytes=sum(entry.value for entry in io if entry.op == "Read"),
        written_bytes=sum(entry.value for entry in io if entry.op == "Write"),
        received_bytes=sum(item.rx_bytes for item in found.network),
        sent_bytes=sum(item.tx_bytes for item in found.network),
    )


def _from_v2(data: bytes) -> Usage:
    found = v2.Metrics.FromString(data)
    memory = found.memory
    return Usage(
        cpu_ns=found.cpu.usage_usec * 1000,
        memory_bytes=memory.usage,
        memory_limit_bytes=_limit(memory.usage_limit, NO_LIMIT_V2),
        working_set_bytes=max(0, memory.usage - memory.inactive_file),
        oom_kills=found.memory_events.oom_kill,
        pids=found.pids.current,
        pids_limit=_limit(found.pids.limit, NO_LIMIT_V2),
        read_bytes=sum(entry.rbytes for entry in found.io.usage),
        written_bytes=sum(entry.wbytes for entry in found.io.usage),
        received_bytes=sum(item.rx_bytes for item in found.network),
        sent_bytes=sum(item.tx_bytes for item in found.network),
    )


def _limit(value: int, none: int) -> int | None:
    return None if value == 0 or value >= none else value
