"""Stats as containerd's consumers read them: complete, in either form, from guests of either cgroup version."""

from __future__ import annotations

import pytest
from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.agent.api import ContainerStats, CpuUse, IoCount, MemoryUse, NetworkUse
from shim.errors import InvalidArgument
from shim.pb.io.containerd.cgroups import v1, v2
from shim.task.metrics import metrics
from shim.task.usage import Usage, usage
from shim.value import replace
from shim.wire import decode

V2_GUEST = ContainerStats(
    cpu=CpuUse(9_000_000, 2_000_000, 7_000_000, periods=3, throttled_periods=2, throttled_ns=5000),
    memory=MemoryUse(4096, 8192, 4, 65536),
    memory_stat={
        "anon": 1000,
        "file": 2000,
        "inactive_file": 96,
        "pgfault": 7,
        "file_mapped": 11,
        "slab": 12,
    },
    memory_events={"oom_kill": 1, "max": 4},
    pids=5,
    pids_limit=32,
    io={
        "io_service_bytes_recursive": tuple(
            IoCount(254, 0, op, value)
            for op, value in [("read", 10), ("write", 20), ("rios", 1), ("wios", 2)]
        )
    },
    network=(NetworkUse("eth0", 100, 1, 0, 0, 200, 2, 0, 0),),
)
V1_GUEST = replace(
    V2_GUEST,
    memory_stat={
        "cache": 1,
        "rss": 1,
        "total_cache": 2000,
        "total_rss": 1000,
        "total_inactive_file": 96,
        "pgfault": 7,
        "total_pgfault": 7,
        "total_mapped_file": 11,
    },
    io={
        "io_service_bytes_recursive": (IoCount(254, 0, "read", 10), IoCount(254, 0, "write", 20)),
        "io_serviced_recursive": (IoCount(254, 0, "read", 1), IoCount(254, 0, "write", 2)),
    },
)


@pytest.mark.parametrize("unified", [False, True])
@pytest.mark.parametrize("guest", [V2_GUEST, V1_GUEST], ids=["v2 guest", "v1 guest"])
def test_the_numbers_come_back_as_they_went_in(guest: ContainerStats, unified: bool) -> None:
    assert usage(metrics(guest, unified=unified)) == Usage(
        cpu_ns=9_000_000,
        memory_bytes=4096,
        memory_limit_bytes=65536,
        working_set_bytes=4000,
        oom_kills=1,
        pids=5,
        pids_limit=32,
        read_bytes=10,
        written_bytes=20,
        received_bytes=100,
        sent_bytes=200,
    )


def test_v1_has_what_the_kernel_would_say_there() -> None:
    found = v1.Metrics.FromString(metrics(V2_GUEST, unified=False).value)
    assert (found.memory.rss, found.memory.total_rss, found.memory.cache) == (1000, 1000, 2000)
    assert (found.memory.pg_fault, found.memory.total_mapped_file) == (7, 11)
    assert found.memory.usage == v1.MemoryEntry(65536, 4096, 8192, 4)
    assert found.memory.swap.limit == 2**63 - 4096, "PAGE_COUNTER_MAX: no limit"
    assert (found.cpu.usage.user, found.cpu.throttling.throttled_time) == (7_000_000, 5000)
    assert [(entry.op, entry.value) for entry in found.blkio.io_service_bytes_recursive][:2] == [
        ("Read", 10),
        ("Write", 20),
    ]


@pytest.mark.parametrize("guest", [V2_GUEST, V1_GUEST], ids=["v2 guest", "v1 guest"])
def test_v2_has_what_the_kernel_would_say_there(guest: ContainerStats) -> None:
    found = v2.Metrics.FromString(metrics(guest, unified=True).value)
    assert (found.cpu.usage_usec, found.cpu.user_usec, found.cpu.system_usec) == (9000, 7000, 2000)
    assert (found.memory.anon, found.memory.file, found.memory.file_mapped) == (1000, 2000, 11)
    assert (found.memory.inactive_file, found.memory.pgfault) == (96, 7)
    assert found.memory.swap_limit == 2**64 - 1
    assert found.io.usage == [v2.IoEntry(254, 0, 10, 20, 1, 2)]
    assert (found.memory_events.oom_kill, found.memory_events.max) == (1, 4)


# By the messages' field numbers: 1 if it is a message to be looked into, else 0.
V1_PARTS = {2: {}, 3: {1: {}, 2: {}}, 4: {33: {}, 34: {}, 35: {}, 36: {}}, 5: {}, 6: {}, 9: {}}
V2_PARTS = {1: {}, 2: {}, 4: {}, 5: {}, 6: {}, 8: {}}


@pytest.mark.parametrize(("unified", "parts"), [(False, V1_PARTS), (True, V2_PARTS)])
def test_all_sub_messages_are_there_even_if_nothing_is_in_them(
    unified: bool, parts: dict[int, object]
) -> None:
    """On the wire, as Go's decoder would see it: it leaves out nothing that stands there, and makes up nothing."""
    answer = metrics(ContainerStats(), unified=unified)
    assert answer.type_url == f"io.containerd.cgroups.v{2 if unified else 1}.Metrics"
    assert_parts(answer.value, parts)


def assert_parts(data: bytes, parts: object) -> None:
    assert isinstance(parts, dict)
    schema = {"m": {number: (str(number), "bytes", "repeated") for number in parts}}
    found = decode(schema, "m", data)
    for number, inner in parts.items():
        assert str(number) in found, f"no field {number}"
        assert_parts(found[str(number)][0], inner)


def test_no_limit_is_no_limit_for_cri() -> None:
    assert (
        v2.Metrics.FromString(metrics(ContainerStats(), unified=True).value).memory.usage_limit == 2**64 - 1
    )
    for unified in (False, True):
        found = usage(metrics(ContainerStats(), unified=unified))
        assert (found.memory_limit_bytes, found.pids_limit) == (None, None)


def test_metrics_of_another_kind_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"x\.Metrics"):
        usage(AnyMessage(type_url="x.Metrics"))
