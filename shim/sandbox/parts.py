"""What a machine is put together from: the drivers of one VM, and what its guest is told."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from shim.agent.api import Agent
from shim.hypervisor.api import Hypervisor
from shim.network.api import HostNetwork
from shim.rootfs.api import RootfsShare
from shim.value import Value
from shim.vsock.api import VsockDevice


class DeviceProcess(Protocol):
    """The vsock device program of one VM."""

    async def start(self) -> int:
        """Run it; the pid."""

    @property
    def vhost_user_fd(self) -> int:
        """Our end of its vhost-user connection, for the hypervisor."""

    def handed_over(self) -> None:
        """The hypervisor has its copy of `vhost_user_fd`: close ours, so that the device sees the VM's
        end."""

    @property
    def client(self) -> VsockDevice: ...

    async def wait(self) -> str:
        """Until it has ended; says how. Any number of callers."""

    async def aclose(self) -> None:
        """Let it write out what it holds, then end it. Idempotent, also before `start`."""


class Parts(Value):
    """The drivers of one VM, none of them started, and how to reach the agent (device, seconds)."""

    hypervisor: Hypervisor
    device: DeviceProcess
    share: RootfsShare
    connect_agent: Callable[[VsockDevice, float], Awaitable[Agent]]
    network: HostNetwork


class SandboxSettings(Value):
    """What the guest's agent is told of the sandbox."""

    sandbox_id: str
    hostname: str
    dns: Sequence[str]
    shm_bytes: int = 64 << 20
    cgroups_path: str = ""
    # Whether containers may share a pid namespace that none of them holds: there is no pause container.
    shared_pidns: bool = False
