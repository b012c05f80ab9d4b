"""A container of our own in a sandbox that is up: made by the agent's RPCs past the shim, read by ReadStdout.

It has the guest's root below /guest, with the agent's own /proc.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from integration.ctr import Ctr
from shim.agent.api import ProcessIds
from shim.agent.kata import KataAgent
from shim.ttrpc.channel import Channel
from shim.vsock.client import DeviceClient

AGENT_PORT = 1024
# The copy buffer of Kata's Go runtime (pkg/containerd-shim-v2/stream.go).
BUFFER = 32 << 10
SHARED = "/run/kata-containers/shared/containers/"
# To look at what the agent has open.
CAPABILITIES = ["CAP_SYS_PTRACE", "CAP_SYS_CHROOT", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"]


def vsock_socket(ctr: Ctr, sandbox: str) -> Path:
    """The hybrid vsock socket of a sandbox."""
    return Path("/run/kata-py", ctr.daemon.namespace, sandbox, "vsock.sock")


class GuestRunner:
    """Runs commands in a sandbox, on the rootfs of its first container. `shim` is the shim's pid."""

    _numbers = itertools.count(1)

    def __init__(self, ctr: Ctr, sandbox: str, shim: int) -> None:
        self.device = DeviceClient(vsock_socket(ctr, sandbox))
        self._root = _guest_root(ctr, sandbox, shim)

    def run(self, *command: str) -> str:
        """The output of a command that must succeed."""

        async def whole() -> bytes:
            return b"".join([data async for data in self.output(*command)])

        return asyncio.run(whole()).decode()

    async def output(self, *command: str) -> AsyncIterator[bytes]:
        """What it prints, as it comes; AssertionError when it does not end with 0."""
        ids = ProcessIds(f"guest-run-{next(self._numbers)}")
        agent = KataAgent(await Channel.connect(await self.device.connect(AGENT_PORT, 10)))
        try:
            # Without ports the agent keeps the output for ReadStdout.
            await agent.create_container(ids.container_id, self._spec(command), (), None, sandbox_pidns=False)
            try:
                await agent.start_container(ids.container_id)
                while data := await agent.read_stdout(ids, BUFFER):
                    yield data
                code = await agent.wait_process(ids)
            finally:
                await agent.remove_container(ids.container_id)
        finally:
            await agent.aclose()
        assert code == 0, f"{command} ended with {code}"

    def _spec(self, command: Iterable[str]) -> dict[str, object]:
        return {
            "ociVersion": "1.0.2",
            "process": {
                "args": list(command),
                "cwd": "/",
                "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
                "user": {"uid": 0, "gid": 0},
                "capabilities": {kind: CAPABILITIES for kind in ("bounding", "effective", "permitted")},
            },
            "root": {"path": self._root},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
                {"destination": "/guest", "type": "bind", "source": "/", "options": ["rbind", "ro"]},
            ],
            "linux": {"namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]},
        }


def _guest_root(ctr: Ctr, sandbox: str, shim: int) -> str:
    """The guest's path of the first container's rootfs, from the mounts in the shim's own mount namespace."""
    share = f"/run/kata-py/{ctr.daemon.namespace}/{sandbox}/share/"
    for line in Path(f"/proc/{shim}/mountinfo").read_text().splitlines():
        place = line.split()[4]
        if place.startswith(share):
            return SHARED + place.removeprefix(share)
    raise AssertionError("no rootfs is shared with the guest")
