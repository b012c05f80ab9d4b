"""What a container uses, from its cgroup (v2) and the guest's network devices, as `grpc.StatsContainerResponse`.

The message is of cgroup v1's time. What v2 has no place for in it goes where Kata's agent puts it: memory.stat's
lines under their own names, io.stat's counters as operations of one list (rustjail, cgroups/fs). One thing more
is ours: the counters of memory.events, which tell whether the OOM killer was here, as `memory.events.oom_kill` in
the same map.
"""

from __future__ import annotations

from shim.guest import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NETWORK_DEVICES = "/proc/net/dev"
_UNLIMITED = (1 << 64) - 1
_IO_OPERATIONS = {"rbytes": "read", "wbytes": "write", "rios": "rios", "wios": "wios"}
_NETWORK_COUNTERS = ("bytes", "packets", "errors", "dropped")


def container_stats(path: str) -> dict[str, Any]:
    """The message. Without a controller, or the whole cgroup, its numbers are absent."""
    group = {
        "cpu_stats": _cpu(path),
        "memory_stats": _memory(path),
        "pids_stats": {"current": _number(path, "pids.current"), "limit": _number(path, "pids.max", 0)},
        "blkio_stats": {"io_service_bytes_recursive": _io(path)},
    }
    return {"cgroup_stats": group, "network_stats": _network()}


def _cpu(path: str) -> dict[str, Any]:
    counters = cgroup.events(path, "cpu.stat")
    usage = {"total_usage": "usage", "usage_in_usermode": "user", "usage_in_kernelmode": "system"}
    throttling = {
        "periods": counters.get("nr_periods", 0),
        "throttled_periods": counters.get("nr_throttled", 0),
        "throttled_time": counters.get("throttled_usec", 0) * 1000,
    }
    return {
        "cpu_usage": {name: counters.get(f"{key}_usec", 0) * 1000 for name, key in usage.items()},
        "throttling_data": throttling,
    }


def _memory(path: str) -> dict[str, Any]:
    counters = cgroup.events(path, "memory.stat")
    events = cgroup.events(path, "memory.events")
    return {
        "cache": counters.get("file", 0),
        "usage": {**_use(path, "memory"), "failcnt": events.get("max", 0)},
        "swap_usage": _use(path, "memory.swap"),
        "kernel_usage": {"usage": counters.get("kernel", 0)},
        "use_hierarchy": True,
        "stats": {**counters, **{f"memory.events.{name}": count for name, count in events.items()}},
    }


def _use(path: str, prefix: str) -> dict[str, int]:
    return {
        "usage": _number(path, f"{prefix}.current"),
        "max_usage": _number(path, f"{prefix}.peak"),
        "limit": _number(path, f"{prefix}.max", _UNLIMITED),
    }


def _io(path: str) -> list[dict[str, Any]]:
    entries = []
    for line in _text(path, "io.stat").splitlines():
        device, *counters = line.split()
        major, _, minor = device.partition(":")
        for counter in counters:
            name, _, value = counter.partition("=")
            if name in _IO_OPERATIONS:
                place = {"major": int(major), "minor": int(minor)}
                entries.append({**place, "op": _IO_OPERATIONS[name], "value": int(value)})
    return entries


def _network() -> list[dict[str, Any]]:
    """All devices but the loopback: the network is the pod's, so its containers show the same."""
    found = []
    with open(NETWORK_DEVICES) as file:
        for line in file.readlines()[2:]:
            name, _, rest = line.partition(":")
            numbers = [int(word) for word in rest.split()]
            if name.strip() != "lo":
                received = {
                    f"rx_{key}": value for key, value in zip(_NETWORK_COUNTERS, numbers, strict=False)
                }
                sent = {
                    f"tx_{key}": value for key, value in zip(_NETWORK_COUNTERS, numbers[8:], strict=False)
                }
                found.append({"name": name.strip(), **received, **sent})
    return found


def _number(path: str, name: str, unlimited: int = 0) -> int:
    text = _text(path, name).strip()
    return unlimited if text == "max" else int(text or 0)


def _text(path: str, name: str) -> str:
    try:
        with open(f"{cgroup.ROOT}{path}/{name}") as file:
            return file.read()
    except OSError:
        return ""  # an older kernel, a controller that is off, or the end of the cgroup
