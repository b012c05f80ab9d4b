"""containerd's Task service: translate, ask the sandbox, translate back."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable

from betterproto.lib.google.protobuf import Empty

from shim import oci
from shim.errors import InvalidArgument, Unimplemented
from shim.pb.containerd.task import v2
from shim.sandbox import ExitStatus, Sandbox, Stdio
from shim.task.convert import create_request, process_info, state_response, timestamp
from shim.task.options import NO_OPTIONS, RuntimeOptions, check_options

# The names it is served under; the messages are the same.
SERVICES = ("containerd.task.v2.Task", "containerd.task.v3.Task")


class TaskService(v2.TaskBase):
    """No state of its own. `on_shutdown` ends sandbox and shim, before Shutdown is answered. `given` are the runtime
    options that the shim was started with."""

    def __init__(
        self,
        sandbox: Sandbox,
        on_shutdown: Callable[[], Awaitable[None]],
        given: RuntimeOptions = NO_OPTIONS,
    ) -> None:
        self._sandbox, self._on_shutdown, self._given = sandbox, on_shutdown, given

    async def create(self, create_task_request: v2.CreateTaskRequest) -> v2.CreateTaskResponse:
        if not self._sandbox.used:  # a later container joins the sandbox as it is
            check_options(create_task_request.options, self._given)
        return v2.CreateTaskResponse(pid=await self._sandbox.create(create_request(create_task_request)))

    async def start(self, start_request: v2.StartRequest) -> v2.StartResponse:
        return v2.StartResponse(pid=await self._sandbox.start(start_request.id, start_request.exec_id))

    async def delete(self, delete_request: v2.DeleteRequest) -> v2.DeleteResponse:
        pid, status = await self._sandbox.delete(delete_request.id, delete_request.exec_id)
        return v2.DeleteResponse(pid=pid, exit_status=status.code, exited_at=timestamp(status.at_ns))

    async def state(self, state_request: v2.StateRequest) -> v2.StateResponse:
        return state_response(self._sandbox.container(state_request.id), state_request.exec_id)

    async def wait(self, wait_request: v2.WaitRequest) -> v2.WaitResponse:
        process = self._sandbox.container(wait_request.id).process(wait_request.exec_id)
        status: ExitStatus = await process.wait()
        return v2.WaitResponse(exit_status=status.code, exited_at=timestamp(status.at_ns))

    async def kill(self, kill_request: v2.KillRequest) -> Empty:
        container = self._sandbox.container(kill_request.id)
        if kill_request.signal > 64:
            raise InvalidArgument(f"signal {kill_request.signal}: want 0 to 64")
        await container.kill(kill_request.exec_id, kill_request.signal, everyone=kill_request.all)
        return Empty()

    async def exec(self, exec_process_request: v2.ExecProcessRequest) -> Empty:
        request = exec_process_request
        container = self._sandbox.container(request.id)
        try:
            process = oci.parse(request.spec.value)
        except InvalidArgument as error:
            raise InvalidArgument(f"exec {request.exec_id}: process spec: {error}") from error
        stdio = Stdio(request.terminal, request.stdin, request.stdout, request.stderr)
        container.add_exec(request.exec_id, stdio, process)
        return Empty()

    async def resize_pty(self, resize_pty_request: v2.ResizePtyRequest) -> Empty:
        request = resize_pty_request
        container = self._sandbox.container(request.id)
        await container.resize(request.exec_id, rows=request.height, columns=request.width)
        return Empty()

    async def close_io(self, close_io_request: v2.CloseIoRequest) -> Empty:
        container = self._sandbox.container(close_io_request.id)
        if close_io_request.stdin:
            container.close_stdin(close_io_request.exec_id)
        return Empty()

    async def pids(self, pids_request: v2.PidsRequest) -> v2.PidsResponse:
        # One entry for each process in the guest, all under the one pid that there is of them on the host: what
        # containerd's clients do with these pids they do to the host's processes, and the guest may lie.
        container = self._sandbox.container(pids_request.id)
        pid = container.pid or os.getpid()
        return v2.PidsResponse(
            processes=[process_info(pid, exec_id) for exec_id in await container.cgroup.processes()]
        )

    async def connect(self, connect_request: v2.ConnectRequest) -> v2.ConnectResponse:
        container = self._sandbox.containers.get(connect_request.id)
        return v2.ConnectResponse(shim_pid=os.getpid(), task_pid=container.pid if container else 0)

    async def shutdown(self, shutdown_request: v2.ShutdownRequest) -> Empty:
        # containerd >= 2.4 asks after every container; only the last one's ends us, or one that says `now`.
        if self._sandbox.close(now=shutdown_request.now):
            await self._on_shutdown()
        return Empty()

    async def pause(self, pause_request: v2.PauseRequest) -> Empty:
        await self._sandbox.container(pause_request.id).cgroup.pause()
        return Empty()

    async def resume(self, resume_request: v2.ResumeRequest) -> Empty:
        await self._sandbox.container(resume_request.id).cgroup.resume()
        return Empty()

    async def update(self, update_task_request: v2.UpdateTaskRequest) -> Empty:
        container = self._sandbox.container(update_task_request.id)
        try:
            resources = oci.parse(update_task_request.resources.value)
        except InvalidArgument as error:
            raise InvalidArgument(f"resources: {error}") from error
        await container.cgroup.update(resources)
        return Empty()

    async def stats(self, stats_request: v2.StatsRequest) -> v2.StatsResponse:
        from shim.task.metrics import host_is_unified, metrics  # not for every start: 9 ms

        stats = await self._sandbox.container(stats_request.id).cgroup.stats()
        return v2.StatsResponse(stats=metrics(stats, unified=host_is_unified()))

    async def checkpoint(self, checkpoint_task_request: v2.CheckpointTaskRequest) -> Empty:
        self._sandbox.container(checkpoint_task_request.id)
        raise Unimplemented("checkpoint: a virtual machine's container cannot be checkpointed")
