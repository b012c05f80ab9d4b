"""What happened to containers, for whoever publishes it (containerd's task events, in our own types)."""

from __future__ import annotations

from collections.abc import Callable

from shim.rootfs.api import Mount
from shim.stdio.uri import Stdio
from shim.value import Value


class ExitStatus(Value):
    """How a process ended: `code` is 0 to 255 (128 + signal number), `at_ns` nanoseconds since the epoch."""

    code: int
    at_ns: int


class TaskCreated(Value):
    container_id: str
    bundle: str
    rootfs: tuple[Mount, ...]
    stdio: Stdio
    pid: int


class TaskStarted(Value):
    container_id: str
    pid: int


class TaskPaused(Value):
    container_id: str


class TaskResumed(Value):
    container_id: str


class TaskOutOfMemory(Value):
    """The guest's OOM killer has ended a process of the container."""

    container_id: str


class TaskExited(Value):
    """`id` is the container's for its init process, else the exec's."""

    container_id: str
    id: str
    pid: int
    status: ExitStatus


class TaskDeleted(Value):
    container_id: str
    pid: int
    status: ExitStatus


class ExecAdded(Value):
    container_id: str
    exec_id: str


class ExecStarted(Value):
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
