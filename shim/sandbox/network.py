"""The sandbox's network: its interfaces leave the pod's namespace on the host and appear in the guest.

`prepare` before the VM runs, `plug` while its CPUs stand still, `configure` once the agent answers. A namespace
of the VMM's own, which the spec does not name, is empty at first; what comes in before the first container
starts (`ctr run --cni`) is taken then, by `rescan`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence

from shim.agent.api import Agent
from shim.errors import Internal
from shim.hypervisor.api import Hypervisor, VirtioNet
from shim.log import Log
from shim.network.api import Attachment, HostNetwork, Network
from shim.record import Record, Redirection
from shim.sandbox.forward import PortForward
from shim.value import replace
from shim.vsock.api import VsockDevice


class SandboxNetwork:
    """`netns` is the path of the pod's namespace, "" for the VMM's own."""

    def __init__(self, host: HostNetwork, netns: str, record: Record, log: Log) -> None:
        self._host, self._netns, self._record, self._log = host, netns, record, log
        self._rescanning = asyncio.Lock()
        self._network = Network()
        self._attachment = Attachment(())
        self._redirection: Redirection | None = None
        self._forward: PortForward | None = None

    async def prepare(self) -> None:
        """Make what the VM is going to be connected with. `aclose` undoes it, also half of it."""
        if self._netns:
            await self._attach(self._netns)

    async def _attach(self, path: str) -> None:
        async with self._host.enter(path) as netns:
            self._network = await netns.scan()
            names = [endpoint.interface.name for endpoint in self._network.endpoints]
            if names:
                try:
                    self._redirection = self._record.add_redirection(path, names)
                except OSError as error:
                    raise Internal(f"network namespace {path}: {error.strerror}") from error
            self._attachment = await netns.attach(self._network)
        self._log.info("network", netns=path, interfaces=",".join(names))
        for reason in self._network.skipped:
            self._log.warning("not given to the guest", what=reason)
        if self._attachment.refused:
            self._log.warning("ports cannot be forwarded", error=self._attachment.refused)

    async def plug(self, hypervisor: Hypervisor) -> None:
        """Give the VM its NICs."""
        taps = self._attachment.taps
        self._attachment = replace(self._attachment, taps=())
        try:
            for number, (endpoint, fd) in enumerate(zip(self._network.endpoints, taps, strict=True)):
                await hypervisor.add_device(VirtioNet(f"net{number}", fd, endpoint.interface.mac))
        finally:
            _close(taps)

    async def configure(self, agent: Agent, device: VsockDevice) -> None:
        """Tell the guest of it, and take connections to its ports."""
        try:
            async with asyncio.TaskGroup() as group:
                for endpoint in self._network.endpoints:
                    group.create_task(agent.update_interface(endpoint.interface))
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        if self._network.routes:
            await agent.update_routes(self._network.routes)
        if self._network.neighbours:
            await agent.add_arp_neighbours(self._network.neighbours)
        if self._attachment.loopback >= 0:
            listener = socket.socket(fileno=self._attachment.loopback)
            self._attachment = replace(self._attachment, loopback=-1)
            self._forward = PortForward(listener, agent, device, self._log)

    async def rescan(self, hypervisor: Hypervisor, agent: Agent, device: VsockDevice) -> None:
        """Take interfaces that have come into the VMM's own namespace since, once."""
        async with self._rescanning:
            if self._netns or self._network.endpoints or not self._host.links(hypervisor.pid):
                return
            await self._attach(f"/proc/{hypervisor.pid}/ns/net")
            await self.plug(hypervisor)
            await self.configure(agent, device)

    async def aclose(self) -> None:
        """With the VM gone, give the interfaces back. Raises OSError. Idempotent."""
        if self._forward is not None:
            await self._forward.aclose()
        attachment, self._attachment = self._attachment, Attachment(())
        _close((*attachment.taps, attachment.loopback, attachment.redirect))
        if self._redirection is not None:
            await asyncio.to_thread(self._redirection.undo)
            self._record.forget_redirection(self._redirection)
            self._redirection = None


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
