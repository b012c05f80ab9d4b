"""containerd's Sandbox service: translate, ask the sandbox, translate back."""

from __future__ import annotations

import platform
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from shim.controller import files, pod
from shim.controller.total import total
from shim.errors import InvalidArgument, NotFound
from shim.pb.containerd.runtime.sandbox import v1
from shim.pb.containerd.types import Metric, Platform
from shim.sandbox import Sandbox
from shim.task.convert import timestamp
from shim.task.metrics import host_is_unified, metrics

# What Go, and so containerd, calls the machines that we run on.
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"


class SandboxService(v1.SandboxBase):
    """No state of its own. `files` is the directory for the pod's files, which is removed with the sandbox.
    `on_shutdown` ends sandbox and shim, before ShutdownSandbox is answered."""

    def __init__(self, sandbox: Sandbox, files: Path, on_shutdown: Callable[[], Awaitable[None]]) -> None:
        self._sandbox, self._files, self._on_shutdown = sandbox, files, on_shutdown

    async def create_sandbox(
        self, create_sandbox_request: v1.CreateSandboxRequest
    ) -> v1.CreateSandboxResponse:
        request = create_sandbox_request
        self._check(request.sandbox_id)
        config = pod.config_of(request.options)
        written = files.write(self._files, config, config.hostname or request.sandbox_id)
        self._sandbox.reserve(pod.spec(request, config, written))
        return v1.CreateSandboxResponse()

    async def start_sandbox(self, start_sandbox_request: v1.StartSandboxRequest) -> v1.StartSandboxResponse:
        self._check(start_sandbox_request.sandbox_id)
        pid = await self._sandbox.boot()
        return v1.StartSandboxResponse(pid=pid, created_at=timestamp(self._sandbox.started_at_ns))

    async def platform(self, platform_request: v1.PlatformRequest) -> v1.PlatformResponse:
        self._check(platform_request.sandbox_id)
        machine = platform.machine()
        architecture = _ARCHITECTURES.get(machine, machine)
        return v1.PlatformResponse(platform=Platform(os="linux", architecture=architecture))

    async def stop_sandbox(self, stop_sandbox_request: v1.StopSandboxRequest) -> v1.StopSandboxResponse:
        # CRI has stopped the containers before; whatever its time-out, ending a VM is bounded in itself.
        self._check(stop_sandbox_request.sandbox_id)
        await self._sandbox.aclose()
        return v1.StopSandboxResponse()

    async def wait_sandbox(self, wait_sandbox_request: v1.WaitSandboxRequest) -> v1.WaitSandboxResponse:
        self._check(wait_sandbox_request.sandbox_id)
        status = await self._sandbox.wait()
        return v1.WaitSandboxResponse(exit_status=status.code, exited_at=timestamp(status.at_ns))

    async def sandbox_status(
        self, sandbox_status_request: v1.SandboxStatusRequest
    ) -> v1.SandboxStatusResponse:
        self._check(sandbox_status_request.sandbox_id)
        sandbox = self._sandbox
        response = v1.SandboxStatusResponse(
            sandbox_id=sandbox.id, pid=sandbox.pid, state=READY if sandbox.pid else NOT_READY
        )
        if sandbox.started_at_ns:
            response.created_at = timestamp(sandbox.started_at_ns)
        if sandbox.exit is not None:
            response.exited_at = timestamp(sandbox.exit.at_ns)
        return response

    async def ping_sandbox(self, ping_request: v1.PingRequest) -> v1.PingResponse:
        self._check(ping_request.sandbox_id)
        await self._sandbox.ping()
        return v1.PingResponse()

    async def sandbox_metrics(
        self, sandbox_metrics_request: v1.SandboxMetricsRequest
    ) -> v1.SandboxMetricsResponse:
        self._check(sandbox_metrics_request.sandbox_id)
        stats = await self._sandbox.stats()
        data = metrics(total(stats), unified=host_is_unified())
        return v1.SandboxMetricsResponse(
            metrics=Metric(timestamp=timestamp(time.time_ns()), id=self._sandbox.id, data=data)
        )

    async def shutdown_sandbox(
        self, shutdown_sandbox_request: v1.ShutdownSandboxRequest
    ) -> v1.ShutdownSandboxResponse:
        self._check(shutdown_sandbox_request.sandbox_id)
        await self._on_shutdown()
        return v1.ShutdownSandboxResponse()

    def _check(self, sandbox_id: str) -> None:
        if not sandbox_id:
            raise InvalidArgument("sandbox id is empty")
        if sandbox_id != self._sandbox.id:
            raise NotFound(f"sandbox {sandbox_id}: not found (this is the shim of {self._sandbox.id})")
