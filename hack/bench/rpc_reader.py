"""The agent's ReadStdout RPC, called as a runtime without passed fds calls it: one request for each buffer."""

from __future__ import annotations

import time
from pathlib import Path

from shim.agent.api import ProcessIds
from shim.agent.kata import KataAgent
from shim.ttrpc.channel import Channel
from shim.vsock.client import DeviceClient

AGENT_PORT = 1024
# The copy buffer of Kata's Go runtime (pkg/containerd-shim-v2/stream.go).
BUFFER = 32 << 10
SHARED = Path("/run/kata-containers/shared/containers")


class RpcReader:
    """Runs containers of its own in a sandbox that is up, on the rootfs of `box`, past its shim."""

    def __init__(self, socket: Path, guest_root: str) -> None:
        self._device, self._root, self._number = DeviceClient(socket), guest_root, 0

    async def rate(self, mib: int) -> float:
        """MB/s of a container's stdout by ReadStdout, from the first byte to the end."""
        self._number += 1
        ids = ProcessIds(f"bench-rpc-{self._number}")
        agent = KataAgent(await Channel.connect(await self._device.connect(AGENT_PORT, 10)))
        command = ["dd", "if=/dev/zero", "bs=64k", f"count={mib * 16}"]
        await agent.create_container(ids.container_id, self._spec(command), (), None, sandbox_pidns=False)
        await agent.start_container(ids.container_id)
        total, started = 0, 0.0
        while data := await agent.read_stdout(ids, BUFFER):
            started = started or time.monotonic()
            total += len(data)
        seconds = time.monotonic() - started
        assert total == mib << 20, f"{total} bytes of {mib << 20}"
        code = await agent.wait_process(ids)
        await agent.remove_container(ids.container_id)
        await agent.aclose()
        assert code == 0, f"dd ended with {code}"
        return total / seconds / 1e6

    def _spec(self, command: list[str]) -> dict[str, object]:
        return {
            "ociVersion": "1.0.2",
            "process": {
                "args": command,
                "cwd": "/",
                "env": ["PATH=/usr/bin:/bin:/usr/sbin:/sbin"],
                "user": {"uid": 0, "gid": 0},
            },
            "root": {"path": self._root},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            ],
            "linux": {"namespaces": [{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]},
        }
