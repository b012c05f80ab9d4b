"""Between containerd's messages and the sandbox's own types. The messages of task v2 and v3 are the same."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import betterproto
from betterproto.lib.google.protobuf import Any as AnyMessage

from shim.errors import InvalidArgument
from shim.pb.containerd import events as pb_events
from shim.pb.containerd import types as pb_types
from shim.pb.containerd.runc.v1 import ProcessDetails
from shim.pb.containerd.task import v2
from shim.pb.containerd.v1.types import ProcessInfo, Status
from shim.sandbox import (
    Container,
    CreateRequest,
    ExecAdded,
    ExecStarted,
    Mount,
    State,
    Stdio,
    TaskCreated,
    TaskDeleted,
    TaskEvent,
    TaskExited,
    TaskOutOfMemory,
    TaskPaused,
    TaskResumed,
    TaskStarted,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

STATUS: Mapping[State, int] = {  # of `Status`, whose members type checkers take for ints
    State.CREATING: Status.CREATED,
    State.CREATED: Status.CREATED,
    State.STARTING: Status.CREATED,
    State.RUNNING: Status.RUNNING,
    State.PAUSED: Status.PAUSED,
    State.STOPPED: Status.STOPPED,
    State.FAILED: Status.STOPPED,
    State.DELETED: Status.STOPPED,
}


def timestamp(at_ns: int) -> datetime:
    """Nanoseconds since the epoch as a message's time, which has microseconds."""
    return _EPOCH + timedelta(microseconds=at_ns // 1000)


def create_request(request: v2.CreateTaskRequest) -> CreateRequest:
    if not request.id:
        raise InvalidArgument("container id is empty")
    if request.checkpoint:
        raise InvalidArgument("restoring a checkpoint is not supported")
    if not request.bundle.startswith("/"):
        raise InvalidArgument(f"bundle {request.bundle!r}: want an absolute path")
    return CreateRequest(
        id=request.id,
        bundle=Path(request.bundle),
        rootfs=tuple(Mount(item.type, item.source, tuple(item.options)) for item in request.rootfs),
        stdio=Stdio(request.terminal, request.stdin, request.stdout, request.stderr),
    )


def state_response(container: Container, exec_id: str) -> v2.StateResponse:
    """What State answers; NotFound for an unknown exec. `id` is an exec's own, as runc's shim has it."""
    process = container.process(exec_id)
    # Who is in a paused container is paused, whatever else it is (runc's shim).
    state = State.PAUSED if container.init.state is State.PAUSED else process.state
    has_run = process is container.init or process.state not in (State.CREATED, State.FAILED)
    response = v2.StateResponse(
        id=process.ids.exec_id or container.id,
        bundle=str(container.request.bundle),
        pid=container.pid if has_run else 0,
        status=Status(STATUS[state]),
        stdin=process.stdio.stdin,
        stdout=process.stdio.stdout,
        stderr=process.stdio.stderr,
        terminal=process.stdio.terminal,
    )
    if process.exit is not None:
        response.exit_status = process.exit.code
        response.exited_at = timestamp(process.exit.at_ns)
    return response


def process_info(pid: int, exec_id: str) -> ProcessInfo:
    """One row of Pids. ctr prints no other kind of details than runc's."""
    if not exec_id:
        return ProcessInfo(pid=pid)
    details = any_message(ProcessDetails(exec_id=exec_id), "containerd.runc.v1.ProcessDetails")
    return ProcessInfo(pid=pid, info=details)


def any_message(message: betterproto.Message, name: str) -> AnyMessage:
    """`message` in an Any. containerd writes the bare message name as type URL, and so do we."""
    return AnyMessage(type_url=name, value=bytes(message))


def event_message(event: TaskEvent) -> tuple[str, AnyMessage]:
    """containerd's topic and message for an event."""
    message: betterproto.Message
    match event:
        case TaskCreated():
            topic = "/tasks/create"
            message = pb_events.TaskCreate(
                container_id=event.container_id,
                bundle=event.bundle,
                rootfs=[
                    pb_types.Mount(type=item.type, source=item.source, options=list(item.options))
                    for item in event.rootfs
                ],
                io=pb_events.TaskIo(
                    stdin=event.stdio.stdin,
                    stdout=event.stdio.stdout,
                    stderr=event.stdio.stderr,
                    terminal=event.stdio.terminal,
                ),
                pid=event.pid,
            )
        case TaskStarted():
            topic = "/tasks/start"
            message = pb_events.TaskStart(container_id=event.container_id, pid=event.pid)
        case TaskPaused():
            topic = "/tasks/paused"
            message = pb_events.TaskPaused(container_id=event.container_id)
        case TaskResumed():
            topic = "/tasks/resumed"
            message = pb_events.TaskResumed(container_id=event.container_id)
        case TaskOutOfMemory():
            topic = "/tasks/oom"
            message = pb_events.TaskOom(container_id=event.container_id)
        case TaskExited():
            topic = "/tasks/exit"
            message = pb_events.TaskExit(
                container_id=event.container_id,
                id=event.id,
                pid=event.pid,
                exit_status=event.status.code,
                exited_at=timestamp(event.status.at_ns),
            )
        case TaskDeleted():
            topic = "/tasks/delete"
            message = pb_events.TaskDelete(
                container_id=event.container_id,
                pid=event.pid,
                exit_status=event.status.code,
                exited_at=timestamp(event.status.at_ns),
            )
        case ExecAdded():
            topic = "/tasks/exec-added"
            message = pb_events.TaskExecAdded(container_id=event.container_id, exec_id=event.exec_id)
        case ExecStarted():
            topic = "/tasks/exec-started"
            message = pb_events.TaskExecStarted(
                container_id=event.container_id, exec_id=event.exec_id, pid=event.pid
            )
    name = "TaskOOM" if isinstance(message, pb_events.TaskOom) else type(message).__name__
    return topic, any_message(message, f"containerd.events.{name}")
