"""Numbers from the guest: translated, and not believed."""

from __future__ import annotations

from shim.agent.api import IoCount, MemoryUse, NetworkUse
from shim.agent.stats import container_stats
from shim.pb import grpc


def test_every_number_has_its_place() -> None:
    answer = grpc.StatsContainerResponse(
        cgroup_stats=grpc.CgroupStats(
            cpu_stats=grpc.CpuStats(
                grpc.CpuUsage(total_usage=7, percpu_usage=[3, 4], usage_in_kernelmode=2, usage_in_usermode=5),
                grpc.ThrottlingData(periods=1, throttled_periods=2, throttled_time=3),
            ),
            memory_stats=grpc.MemoryStats(
                cache=10,
                usage=grpc.MemoryData(usage=20, max_usage=21, failcnt=22, limit=23),
                swap_usage=grpc.MemoryData(usage=30, limit=2**64 - 1),
                kernel_usage=grpc.MemoryData(usage=40),
                stats={"anon": 50, "memory.events.oom_kill": 60},
            ),
            pids_stats=grpc.PidsStats(current=8, limit=9),
            blkio_stats=grpc.BlkioStats(
                io_service_bytes_recursive=[grpc.BlkioStatsEntry(major=254, minor=1, op="Read", value=70)]
            ),
            hugetlb_stats={"2MB": grpc.HugetlbStats(usage=80, max_usage=81, failcnt=82)},
        ),
        network_stats=[
            grpc.NetworkStats(
                name="eth0",
                rx_bytes=1,
                rx_packets=2,
                rx_errors=3,
                rx_dropped=4,
                tx_bytes=5,
                tx_packets=6,
                tx_errors=7,
                tx_dropped=8,
            )
        ],
    )
    found = container_stats(answer)
    cpu = found.cpu
    assert (cpu.total_ns, cpu.kernel_ns, cpu.user_ns, cpu.percpu_ns) == (7, 2, 5, (3, 4))
    assert (cpu.periods, cpu.throttled_periods, cpu.throttled_ns) == (1, 2, 3)
    assert found.memory == MemoryUse(20, 21, 22, 23)
    assert found.swap == MemoryUse(30, limit=None)
    assert (found.kernel.usage, found.cache) == (40, 10)
    assert (found.memory_stat, found.memory_events) == ({"anon": 50}, {"oom_kill": 60})
    assert (found.pids, found.pids_limit) == (8, 9)
    assert found.io["io_service_bytes_recursive"] == (IoCount(254, 1, "read", 70),)
    assert found.hugetlb == {"2MB": MemoryUse(80, 81, 82)}
    assert found.network == (NetworkUse("eth0", 1, 2, 3, 4, 5, 6, 7, 8),)


def test_an_empty_answer_is_no_use_and_no_limit() -> None:
    found = container_stats(grpc.StatsContainerResponse())
    assert (found.cpu.total_ns, found.memory, found.pids_limit) == (0, MemoryUse(), None)
    assert found.network == ()


def test_what_is_too_long_or_too_large_is_cut() -> None:
    many = [grpc.BlkioStatsEntry(op="x" * 1000)] * 10_000
    answer = grpc.StatsContainerResponse(
        cgroup_stats=grpc.CgroupStats(
            cpu_stats=grpc.CpuStats(grpc.CpuUsage(total_usage=2**64 + 5, percpu_usage=[1] * 100_000)),
            memory_stats=grpc.MemoryStats(stats={f"k{n}": n for n in range(10_000)}),
            blkio_stats=grpc.BlkioStats(io_serviced_recursive=many),
            hugetlb_stats={f"k{n}" * 100: grpc.HugetlbStats() for n in range(1000)},
        ),
        network_stats=[grpc.NetworkStats(name="n" * 1000)] * 1000,
    )
    found = container_stats(answer)
    assert found.cpu.total_ns == 5
    sizes = [
        found.cpu.percpu_ns,
        found.memory_stat,
        found.io["io_serviced_recursive"],
        found.hugetlb,
        found.network,
    ]
    assert all(len(part) <= 1024 for part in sizes)
    names = [found.network[0].name, found.io["io_serviced_recursive"][0].op, *found.hugetlb]
    assert all(len(name) <= 64 for name in names)
