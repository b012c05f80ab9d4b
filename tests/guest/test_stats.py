"""A container's cgroup as a StatsContainerResponse."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.guest import stats
from shim.guest.schema import MESSAGES
from shim.wire import decode, encode

FILES = {
    "cpu.stat": "usage_usec 70\nuser_usec 50\nsystem_usec 20\nnr_periods 3\nnr_throttled 2\nthrottled_usec 9\n",
    "memory.current": "4096\n",
    "memory.peak": "8192\n",
    "memory.max": "max\n",
    "memory.swap.current": "0\n",
    "memory.swap.max": "1048576\n",
    "memory.stat": "anon 1000\nfile 2000\nkernel 300\ninactive_file 100\n",
    "memory.events": "low 0\nhigh 0\nmax 4\noom 2\noom_kill 1\n",
    "pids.current": "5\n",
    "pids.max": "max\n",
    "io.stat": "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n253:1 \n",
}
NETWORK = """\
Inter-|   Receive                                     |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo:  999       9    0    0    0     0          0         0   999       9    0    0    0     0       0          0
  eth0: 1000      10    1    2    0     0          0         0  2000      20    3    4    0     0       0          0
"""


@pytest.fixture
def group(cgroups: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "net").write_text(NETWORK)
    monkeypatch.setattr(stats, "NETWORK_DEVICES", str(tmp_path / "net"))
    (cgroups / "c1").mkdir()
    for name, text in FILES.items():
        (cgroups / "c1" / name).write_text(text)
    return cgroups / "c1"


def on_the_wire() -> dict[str, object]:
    message = encode(MESSAGES, "grpc.StatsContainerResponse", stats.container_stats("/c1"))
    return decode(MESSAGES, "grpc.StatsContainerResponse", message)


def test_the_numbers_are_those_of_the_cgroup_in_kata_s_units(group: Path) -> None:
    found = on_the_wire()["cgroup_stats"]
    assert isinstance(found, dict)
    assert found["cpu_stats"] == {
        "cpu_usage": {"total_usage": 70_000, "usage_in_usermode": 50_000, "usage_in_kernelmode": 20_000},
        "throttling_data": {"periods": 3, "throttled_periods": 2, "throttled_time": 9_000},
    }
    memory = found["memory_stats"]
    assert memory["usage"] == {"usage": 4096, "max_usage": 8192, "limit": 2**64 - 1, "failcnt": 4}
    assert memory["swap_usage"] == {"limit": 1 << 20}
    assert (memory["cache"], memory["kernel_usage"]["usage"]) == (2000, 300)
    assert (memory["stats"]["anon"], memory["stats"]["memory.events.oom_kill"]) == (1000, 1)
    assert found["pids_stats"] == {"current": 5}, "no limit is 0, as with Kata's agent"
    counts = found["blkio_stats"]["io_service_bytes_recursive"]
    assert [(count["op"], count["value"]) for count in counts] == [
        ("read", 10),
        ("write", 20),
        ("rios", 1),
        ("wios", 2),
    ]
    assert {(count["major"], count.get("minor", 0)) for count in counts} == {(254, 0)}


def test_limits_are_told(group: Path) -> None:
    (group / "memory.max").write_text("65536\n")
    (group / "pids.max").write_text("32\n")
    found = on_the_wire()["cgroup_stats"]
    assert isinstance(found, dict)
    assert found["memory_stats"]["usage"]["limit"] == 65536
    assert found["pids_stats"]["limit"] == 32


def test_network_devices_are_the_pod_s_without_the_loopback(group: Path) -> None:
    assert on_the_wire()["network_stats"] == [
        {
            "name": "eth0",
            "rx_bytes": 1000,
            "rx_packets": 10,
            "rx_errors": 1,
            "rx_dropped": 2,
            "tx_bytes": 2000,
            "tx_packets": 20,
            "tx_errors": 3,
            "tx_dropped": 4,
        }
    ]


def test_a_controller_that_is_off_and_a_cgroup_that_is_gone_have_no_numbers(group: Path) -> None:
    for name in FILES:
        (group / name).unlink()
    found = on_the_wire()["cgroup_stats"]
    group.rmdir()
    assert found == on_the_wire()["cgroup_stats"]
    assert isinstance(found, dict) and found["pids_stats"] == {}
