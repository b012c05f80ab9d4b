"""Streams passed to the vsock device: once they are, not a byte goes through us."""

from __future__ import annotations

from shim.agent.api import StdioPorts
from shim.stdio.api import NAMES, Carrier
from shim.vsock.api import Stream, VsockDevice


class PassedStdio(Carrier):
    """`port` is where the guest's agent takes streams, `timeout_s` what a stream may need to get there."""

    def __init__(self, device: VsockDevice, port: int, timeout_s: float) -> None:
        self._device, self._port, self._timeout_s = device, port, timeout_s

    async def carry(self, name: str, fd: int) -> Stream:
        return await self._device.pass_fd(fd, self._port, self._timeout_s)

    def ports(self, streams: dict[str, Stream]) -> StdioPorts:
        return StdioPorts(*(streams[name].host_port if name in streams else 0 for name in NAMES))

    def begin(self) -> None:
        """Nothing: the agent joins the streams to the process."""

    def end(self) -> None:
        """Nothing: the agent closes its end of stdin, and the device ours."""

    async def exit_may_be_asked(self) -> None:
        """At once: output is in the streams before the agent answers."""

    def close(self) -> None:
        """Nothing: each stream has its own."""
