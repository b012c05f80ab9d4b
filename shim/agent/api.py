"""The calls we make to the agent in the guest, in our own types.

`kata.py` speaks them over `grpc.AgentService` to our agent and to the genuine kata-agent alike.
An OCI spec or process is the JSON object of the runtime spec (a dict), as in the bundle's config.json.
The init process of a container is named by exec_id "" here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

from shim.network.api import Interface, Neighbour, Route
from shim.value import Value

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class StdioPorts(Value):
    """Host ports of the streams handed to the device for one process; 0 = no such stream.

    None instead of them: the streams are read and written by RPC.
    """

    stdin: int = 0
    stdout: int = 0
    stderr: int = 0


class Storage(Value):
    """A mount the agent makes before the container (agent.proto `Storage`)."""

    driver: str
    source: str
    fstype: str
    mount_point: str
    options: tuple[str, ...] = ()
    # It stays as long as the sandbox, also without a container that uses it.
    shared: bool = False


class Device(Value):
    """A device the agent finds by `id` and puts into the container at `container_path` (agent.proto `Device`). Of
    type "blk" the id is a disk's PCI path (`hypervisor.api.Hypervisor.add_disk`)."""

    type: str
    id: str
    container_path: str


class ProcessIds(Value):
    """Which process of which container; exec_id "" is the init process."""

    container_id: str
    exec_id: str = ""


class CpuUse(Value):
    """What a container has used of the guest's processors, and how often it was kept from more."""

    total_ns: int = 0
    kernel_ns: int = 0
    user_ns: int = 0
    percpu_ns: tuple[int, ...] = ()
    periods: int = 0
    throttled_periods: int = 0
    throttled_ns: int = 0


class MemoryUse(Value):
    """Bytes, and how often more was wanted than `limit`; None is no limit."""

    usage: int = 0
    max_usage: int = 0
    failcnt: int = 0
    limit: int | None = None


class IoCount(Value):
    """One counter of one block device. From cgroup v2 `op` is read, write (bytes), rios or wios."""

    major: int
    minor: int
    op: str
    value: int


class NetworkUse(Value):
    """One network device of the guest."""

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


class ContainerStats(Value):
    """What a container uses, in the guest's numbers; every number fits 64 bits.

    `memory_stat` and `memory_events` are the files of these names in the guest's cgroup, v1 or v2; `io` is by
    the message's field name (`io_service_bytes_recursive` …), `hugetlb` by page size. `pids` counts threads.
    """

    cpu: CpuUse = CpuUse()
    memory: MemoryUse = MemoryUse()
    swap: MemoryUse = MemoryUse()
    kernel: MemoryUse = MemoryUse()
    cache: int = 0
    memory_stat: Mapping[str, int] = _NOTHING
    memory_events: Mapping[str, int] = _NOTHING
    pids: int = 0
    pids_limit: int | None = None
    io: Mapping[str, tuple[IoCount, ...]] = _NOTHING
    hugetlb: Mapping[str, MemoryUse] = _NOTHING
    network: tuple[NetworkUse, ...] = ()


class Agent(Protocol):
    """One connection to the agent. Every call raises `errors.ShimError`; a lost connection is Unavailable.
    All calls but `wait_process`, `oom_event`, `write_stdin` and the two reads have a deadline."""

    @property
    def forgets_ended(self) -> bool:
        """Whether a process cannot be read any more once `wait_process` has answered (the genuine agent). Known
        after `check`."""

    @property
    def loses_streams(self) -> bool:
        """Whether passed streams need the care of `stdio.genuine` (the genuine agent). Known after `check`."""

    async def check(self) -> str:
        """Health check; returns the agent's version."""

    async def set_guest_date_time(self, now_ns: int) -> None: ...

    async def reseed_random(self, entropy: bytes) -> None: ...

    async def create_sandbox(
        self,
        sandbox_id: str,
        hostname: str,
        dns: Sequence[str],
        storages: Sequence[Storage],
        *,
        shared_pidns: bool,
    ) -> None: ...

    async def update_interface(self, interface: Interface) -> None:
        """Give the guest's NIC with this MAC its name, addresses and MTU, and set it up. Waits for the NIC."""

    async def update_routes(self, routes: Sequence[Route]) -> None: ...

    async def add_arp_neighbours(self, neighbours: Sequence[Neighbour]) -> None: ...

    async def forward_port(self, port: int) -> int:
        """Connect to a TCP port of the guest's loopback; the vsock port at which the guest waits, for some seconds,
        for the one stream that is to be joined to it. Unavailable when nobody listens; Unimplemented or NotFound
        by an agent that is not ours."""

    async def create_container(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        storages: Sequence[Storage],
        ports: StdioPorts | None,
        *,
        sandbox_pidns: bool,
        devices: Sequence[Device] = (),
    ) -> None: ...

    async def start_container(self, container_id: str) -> None: ...

    async def remove_container(self, container_id: str) -> None: ...

    async def exec_process(
        self, ids: ProcessIds, process: Mapping[str, Any], ports: StdioPorts | None
    ) -> None: ...

    async def signal_process(self, ids: ProcessIds, signal: int, *, everyone: bool) -> None:
        """Send a signal to one process, or to all of the container (`everyone`)."""

    async def wait_process(self, ids: ProcessIds) -> int:
        """Exit code (128 + signal) once the process has ended and its output is in the streams. The genuine
        agent answers one waiter only: call it once per process."""

    async def pause_container(self, container_id: str) -> None: ...

    async def resume_container(self, container_id: str) -> None: ...

    async def update_container(self, container_id: str, resources: Mapping[str, Any]) -> None:
        """Change its limits; `resources` is the runtime spec's object, named so in errors."""

    async def online_cpu_mem(self, nb_cpus: int) -> None:
        """Put to use what was plugged in: memory, and CPUs until there are `nb_cpus`, for which the agent waits."""

    async def stats_container(self, container_id: str) -> ContainerStats: ...

    async def list_processes(self, container_id: str) -> Sequence[str]:
        """For each process in the container the id of the exec it is, "" for all others. Unimplemented by the
        genuine agent. The guest's pids are not told: nobody on the host could use them."""

    async def oom_event(self) -> str:
        """The id of the next container in which the OOM killer was, whenever that is."""

    async def resize_tty(self, ids: ProcessIds, rows: int, columns: int) -> None: ...

    async def close_stdin(self, ids: ProcessIds) -> None: ...

    async def end_unused_stdin(self, ids: ProcessIds, ports: StdioPorts | None) -> None:
        """This process was made with `ports`, no stdin and no terminal: it must find the end of its input. Our agent
        has seen to that if streams are passed; otherwise there is a pipe that nobody would ever close."""

    async def write_stdin(self, ids: ProcessIds, data: bytes) -> int: ...

    async def read_stdout(self, ids: ProcessIds, size: int) -> bytes:
        """Up to `size` bytes; b"" is the end of the stream."""

    async def read_stderr(self, ids: ProcessIds, size: int) -> bytes: ...

    async def aclose(self) -> None: ...
