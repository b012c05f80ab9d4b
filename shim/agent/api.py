"""The calls we make to the agent in the guest, in our own types.

`kata.py` speaks them over `grpc.AgentService` to our agent and to the genuine kata-agent alike.
An OCI spec or process is the JSON object of the runtime spec (a dict), as in the bundle's config.json.
The init process of a container is named by exec_id "" here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class StdioPorts:
    """Host ports of the streams handed to the device for one process; 0 = no such stream."""

    stdin: int = 0
    stdout: int = 0
    stderr: int = 0


@dataclass(frozen=True, slots=True)
class Storage:
    """A mount the agent makes before the container (agent.proto `Storage`)."""

    driver: str
    source: str
    fstype: str
    mount_point: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProcessIds:
    """Which process of which container; exec_id "" is the init process."""

    container_id: str
    exec_id: str = ""


class Agent(Protocol):
    """One connection to the agent. Every call raises `errors.ShimError`; a lost connection is Unavailable.
    All calls but `wait_process`, `write_stdin` and the two reads have a deadline."""

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

    async def destroy_sandbox(self) -> None: ...

    async def create_container(
        self,
        container_id: str,
        spec: Mapping[str, Any],
        storages: Sequence[Storage],
        ports: StdioPorts,
        *,
        sandbox_pidns: bool,
    ) -> None: ...

    async def start_container(self, container_id: str) -> None: ...

    async def remove_container(self, container_id: str) -> None: ...

    async def exec_process(self, ids: ProcessIds, process: Mapping[str, Any], ports: StdioPorts) -> None: ...

    async def signal_process(self, ids: ProcessIds, signal: int, *, everyone: bool) -> None:
        """Send a signal to one process, or to all of the container (`everyone`)."""

    async def wait_process(self, ids: ProcessIds) -> int:
        """Exit code (128 + signal) once the process has ended and its output is in the streams. The genuine
        agent answers one waiter only: call it once per process."""

    async def resize_tty(self, ids: ProcessIds, rows: int, columns: int) -> None: ...

    async def close_stdin(self, ids: ProcessIds) -> None: ...

    async def end_unused_stdin(self, ids: ProcessIds) -> None:
        """This process was made without a stdin and without a terminal: it must find the end of its input. Our agent
        has seen to that, the genuine one has made a pipe that nobody would ever close."""

    async def write_stdin(self, ids: ProcessIds, data: bytes) -> int: ...

    async def read_stdout(self, ids: ProcessIds, size: int) -> bytes:
        """Up to `size` bytes; b"" is the end of the stream."""

    async def read_stderr(self, ids: ProcessIds, size: int) -> bytes: ...

    async def aclose(self) -> None: ...
