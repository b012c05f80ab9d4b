"""What happened to containers, for whoever publishes it (containerd's task events, in our own types)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shim.rootfs.api import Mount
from shim.stdio.uri import Stdio


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: `code` is 0 to 255 (128 + signal number), `at_ns` nanoseconds since the epoch."""

    code: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class TaskCreated:
    container_id: str
    bundle: str
    rootfs: tuple[Mount, ...]
    stdio: Stdio
    pid: int


@dataclass(frozen=True, slots=True)
class TaskStarted:
    container_id: str
    pid: int


@dataclass(frozen=True, slots=True)
class TaskPaused:
    container_id: str


@dataclass(frozen=True, slots=True)
class TaskResumed:
    container_id: str


@dataclass(frozen=True, slots=True)
class TaskOutOfMemory:
    """The guest's OOM killer has ended a process of the container."""

    container_id: str


@dataclass(frozen=True, slots=True)
class TaskExited:
    """`id` is the container's for its init process, else the exec's."""

    container_id: str
    id: str
    pid: int
    status: ExitStatus


@dataclass(frozen=True, slots=True)
class TaskDeleted:
    container_id: str
    pid: int
    status: ExitStatus


@dataclass(frozen=True, slots=True)
class ExecAdded:
    container_id: str
    exec_id: str


@dataclass(frozen=True, slots=True)
class ExecStarted:
    container_id: str
    exec_id: str
    pid: int


TaskEvent = (
    TaskCreated
    | TaskStarted
    | TaskPaused
    | TaskResumed
    | TaskOutOfMemory
    | TaskExited
    | TaskDeleted
    | ExecAdded
    | ExecStarted
)

# Called on the event loop, in the order in which things happened; must not block or raise.
Emit = Callable[[TaskEvent], None]
