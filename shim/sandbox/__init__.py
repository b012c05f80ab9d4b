"""One sandbox: a VM and the containers in it. Knows every capability by its `api` only."""

from shim.rootfs.api import Mount
from shim.sandbox.container import Container
from shim.sandbox.events import (
    Emit,
    ExecAdded,
    ExecStarted,
    ExitStatus,
    TaskCreated,
    TaskDeleted,
    TaskEvent,
    TaskExited,
    TaskOutOfMemory,
    TaskPaused,
    TaskResumed,
    TaskStarted,
)
from shim.sandbox.process import Process
from shim.sandbox.request import CreateRequest
from shim.sandbox.sandbox import Sandbox
from shim.sandbox.states import State
from shim.stdio.uri import Stdio

__all__ = [
    "Container",
    "CreateRequest",
    "Emit",
    "ExecAdded",
    "ExecStarted",
    "ExitStatus",
    "Mount",
    "Process",
    "Sandbox",
    "State",
    "Stdio",
    "TaskCreated",
    "TaskDeleted",
    "TaskEvent",
    "TaskExited",
    "TaskOutOfMemory",
    "TaskPaused",
    "TaskResumed",
    "TaskStarted",
]
