"""What moves the bytes between the host's descriptors and one process in the guest."""

from __future__ import annotations

from typing import Protocol

from shim.agent.api import StdioPorts
from shim.vsock.api import Stream

STDIN, STDOUT, STDERR = NAMES = ("stdin", "stdout", "stderr")


class Carrier(Protocol):
    """The stdio of one process: passed to the device (`passed`) or copied by the agent's RPCs (`rpc`)."""

    async def carry(self, name: str, fd: int) -> Stream:
        """Make `fd`, non-blocking, the host's end of a stream of the process. `fd` stays the caller's, who may
        close it as soon as this returns. Errors as `VsockDevice.pass_fd`."""

    def ports(self, streams: dict[str, Stream]) -> StdioPorts | None:
        """What the agent is told of the streams that were carried; None when it is to wait for RPCs."""

    def begin(self) -> None:
        """The process runs."""

    def end(self) -> None:
        """The process has ended: nobody reads its input any more. Idempotent, also before `begin`."""

    async def exit_may_be_asked(self) -> None:
        """Until asking the agent for the exit cannot cost output."""

    def close(self) -> None:
        """Give up what the streams themselves do not own. Idempotent."""
