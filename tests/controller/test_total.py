"""What a pod uses is what its containers use."""

from __future__ import annotations

from shim.agent.api import ContainerStats, CpuUse, IoCount, MemoryUse, NetworkUse
from shim.controller.total import total

ETH0 = NetworkUse("eth0", rx_bytes=7)


def stats(factor: int) -> ContainerStats:
    return ContainerStats(
        cpu=CpuUse(total_ns=10 * factor, user_ns=factor),
        memory=MemoryUse(usage=100 * factor, max_usage=200 * factor, limit=1000),
        memory_stat={"anon": 5 * factor},
        memory_events={"oom_kill": factor},
        pids=factor,
        io={"io_service_bytes_recursive": (IoCount(254, 0, "read", 4096 * factor),)},
        network=(ETH0,),
    )


def test_numbers_are_added_and_the_network_is_not() -> None:
    found = total([stats(1), stats(2)])
    assert (found.cpu.total_ns, found.cpu.user_ns) == (30, 3)
    assert (found.memory.usage, found.memory.max_usage, found.memory.limit) == (300, 600, None)
    assert (found.memory_stat, found.memory_events) == ({"anon": 15}, {"oom_kill": 3})
    assert found.pids == 3 and found.pids_limit is None
    assert found.io == {"io_service_bytes_recursive": (IoCount(254, 0, "read", 12288),)}
    assert found.network == (ETH0,)


def test_a_pod_without_containers_uses_nothing() -> None:
    assert total([]) == ContainerStats()
