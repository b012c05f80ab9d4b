"""Ask a live shim about its sandbox."""

from __future__ import annotations

import asyncio

from shim.errors import DeadlineExceeded
from shim.introspect.usage import Usage, usage
from shim.pb.containerd.task import v2
from shim.pb.kata_py import introspect as pb
from shim.ttrpc.channel import Channel


class ShimClient:
    """One connection to the shim at a socket's address. Every call is over within `timeout_s`, whatever the shim
    does, and raises a ShimError."""

    def __init__(self, channel: Channel, address: str, timeout_s: float) -> None:
        self._channel, self._address, self._timeout_s = channel, address, timeout_s

    @classmethod
    async def connect(cls, address: str, timeout_s: float) -> ShimClient:
        """Unavailable when nobody listens, DeadlineExceeded when nobody accepts."""
        try:
            async with asyncio.timeout(timeout_s):
                return cls(await Channel.dial(address), address, timeout_s)
        except TimeoutError as error:
            raise DeadlineExceeded(f"{address}: no connection within {timeout_s:g} s") from error

    async def sandbox(self, *, streams: bool = False) -> pb.SandboxResponse:
        stub = pb.IntrospectStub(self._channel, timeout=self._timeout_s)  # type: ignore[arg-type]
        return await stub.sandbox(pb.SandboxRequest(streams=streams))

    async def usage(self, container_id: str) -> Usage:
        stub = v2.TaskStub(self._channel, timeout=self._timeout_s)  # type: ignore[arg-type]
        return usage((await stub.stats(v2.StatsRequest(id=container_id))).stats)

    async def aclose(self) -> None:
        await self._channel.aclose()
