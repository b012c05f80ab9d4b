"""Kata's two runtimes as an agent sees them: their calls, in their order, with their field values.

Sources: kata-containers `src/runtime-rs` (virt_container, container_manager) and `src/runtime` (kata_agent.go),
release 4.1.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from tests.fakes.kata_wire import HEALTH, KataWire, Message, Status, text_map

SECOND_NS = 1_000_000_000
SHARED = "/run/kata-containers/shared/containers/"
SHM = "/run/kata-containers/sandbox/shm"
# driver, driver_options, source, fstype, options, mount_point
SHARE = {1: "virtio-fs", 3: "kataShared", 4: "virtiofs", 5: ["nodev"], 6: SHARED}
SHM_STORAGE = {
    1: "ephemeral",
    3: "shm",
    4: "tmpfs",
    5: ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"],
    6: SHM,
}


def process(args: Sequence[str], capabilities: Sequence[str], *, terminal: bool = False) -> Message:
    """oci.proto Process, as containerd's default spec has it."""
    return {
        1: terminal,
        3: {1: 0, 2: 0, 3: [0, 10]},
        4: list(args),
        5: ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"],
        6: "/",
        7: {1: capabilities, 2: capabilities, 4: capabilities},
        8: [{1: "RLIMIT_NOFILE", 2: 1024, 3: 1024}],
        9: True,
    }


def spec(
    args: Sequence[str],
    root: str,
    *,
    capabilities: Sequence[str],
    namespaces: Sequence[str],
    annotations: dict[str, str],
    cgroups_path: str,
    terminal: bool = False,
) -> Message:
    """oci.proto Spec after the runtimes' edits: no host paths, no devices, shm bound from the sandbox's."""
    return {
        1: "1.1.0",
        2: process(args, capabilities, terminal=terminal),
        3: {1: root},
        5: [
            {1: "/proc", 2: "proc", 3: "proc", 4: ["nosuid", "noexec", "nodev"]},
            {1: "/dev", 2: "tmpfs", 3: "tmpfs", 4: ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {
                1: "/dev/pts",
                2: "devpts",
                3: "devpts",
                4: ["nosuid", "noexec", "newinstance", "ptmxmode=0666"],
            },
            {1: "/dev/shm", 2: SHM, 3: "bind", 4: ["rbind"]},
        ],
        7: text_map(annotations),
        8: {
            4: {2: {1: 64 << 20}, 3: {1: 1024}},
            5: cgroups_path,
            6: [{1: kind} for kind in namespaces],
            10: ["/proc/kcore", "/proc/keys"],
            11: ["/proc/sys"],
        },
    }


class RuntimeRs:
    """runtime-rs. The init process has no exec id, an exec has containerd's; every call but those that wait has
    30 s. Streams are passed (`ports`) on Dragonball, else fetched by RPC. Capabilities and namespaces have the names of
    the oci-spec crate's enumerations."""

    CAPABILITIES: ClassVar = ["CHOWN", "KILL", "SETUID"]

    def __init__(self, wire: KataWire, shared: str = SHARED) -> None:
        self.wire, self._shared = wire, shared
        self.oom: asyncio.Task[Any] | None = None

    async def _call(self, method: str, request: Message, **kwargs: Any) -> dict[int, list[Any]]:
        return await self.wire.call(method, request, timeout_ns=30 * SECOND_NS, **kwargs)

    def root(self, container_id: str) -> str:
        return f"{self._shared}passthrough/{container_id}/rootfs"

    async def start_sandbox(self, sandbox_id: str, storages: Sequence[Message]) -> dict[int, list[Any]]:
        """No health check first. Returns the guest's details."""
        dns = ["search example.org", "nameserver 192.0.2.53"]
        await self._call("CreateSandbox", {1: "pod", 2: dns, 3: storages, 5: sandbox_id})
        details = await self._call("GetGuestDetails", {1: True, 2: True})
        self.oom = asyncio.create_task(self.wire.call("GetOOMEvent", {}))
        await self.wire.call("Check", {}, service=HEALTH, timeout_ns=90 * SECOND_NS)
        return details

    async def create(
        self,
        container_id: str,
        args: Sequence[str],
        ports: Sequence[int] = (0, 0, 0),
        *,
        terminal: bool = False,
        cpus: int = 1,
    ) -> None:
        await self._call("OnlineCPUMem", {2: cpus})
        oci = spec(
            args,
            self.root(container_id),
            capabilities=self.CAPABILITIES,
            namespaces=["ipc", "uts", "mnt", "cgroup"],
            annotations={"io.katacontainers.pkg.oci.container_type": "pod_container"},
            cgroups_path=f"/kubepods/{container_id}",
            terminal=terminal,
        )
        stdin, stdout, stderr = ports
        await self._call("CreateContainer", {1: container_id, 6: oci, 9: stdin, 10: stdout, 11: stderr})

    async def start(self, container_id: str) -> asyncio.Task[int]:
        """The task is the exit code's: WaitProcess follows at once and has no limit."""
        await self._call("StartContainer", {1: container_id})
        return asyncio.create_task(self.wait(container_id))

    async def wait(self, container_id: str, exec_id: str = "") -> int:
        answer = await self.wire.call("WaitProcess", {1: container_id, 2: exec_id})
        return int(answer.get(1, [0])[0])

    async def exec(
        self,
        container_id: str,
        exec_id: str,
        args: Sequence[str],
        ports: Sequence[int] = (0, 0, 0),
        size: tuple[int, int] | None = None,
    ) -> asyncio.Task[int]:
        # Capabilities are left out, to be the container's.
        oci = {key: value for key, value in process(args, [], terminal=size is not None).items() if key != 7}
        stdin, stdout, stderr = ports
        await self._call("ExecProcess", {1: container_id, 2: exec_id, 4: oci, 5: stdin, 6: stdout, 7: stderr})
        if size is not None:
            await self._call("TtyWinResize", {1: container_id, 2: exec_id, 3: size[0], 4: size[1]})
        return asyncio.create_task(self.wait(container_id, exec_id))

    async def after_exit(self, container_id: str) -> None:
        """What follows the end of an init process at once: whatever is left is killed and removed."""
        with contextlib.suppress(Status):  # its answer is not looked at
            await self._call("SignalProcess", {1: container_id, 3: 9})
        await self._call("RemoveContainer", {1: container_id})

    # -- stdio by RPC: without limit, an empty write ends the input, an empty read is the end of an output ----

    async def write(self, container_id: str, exec_id: str, data: bytes) -> None:
        for at in range(0, len(data), 8192):
            await self.wire.call("WriteStdin", {1: container_id, 2: exec_id, 3: data[at : at + 8192]})
        await self.wire.call("WriteStdin", {1: container_id, 2: exec_id})

    async def read(self, container_id: str, exec_id: str, *, stderr: bool = False, size: int = 8192) -> bytes:
        parts = [part async for part in self._parts(container_id, exec_id, stderr, size)]
        return b"".join(parts)

    async def _parts(self, container_id: str, exec_id: str, stderr: bool, size: int) -> AsyncIterator[bytes]:
        method = "ReadStderr" if stderr else "ReadStdout"
        while True:
            answer = await self.wire.call(method, {1: container_id, 2: exec_id, 3: size})
            if not answer.get(1):
                return
            yield answer[1][0]


class GoRuntime(RuntimeRs):
    """The Go runtime. The init process's exec id is the container's id, an exec's is a token of its own; calls have
    60 s; streams always go by RPC, and CloseStdin ends the input. It says good-bye with DestroySandbox."""

    CAPABILITIES: ClassVar = ["CAP_CHOWN", "CAP_KILL", "CAP_SETUID"]

    def root(self, container_id: str) -> str:
        return f"{self._shared}{container_id}/rootfs"

    async def _call(self, method: str, request: Message, **kwargs: Any) -> dict[int, list[Any]]:
        # The deadline is what is left of a minute; a traced runtime passes its span along.
        trace = [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")]
        return await self.wire.call(
            method, request, timeout_ns=60 * SECOND_NS - 12_345, metadata=trace, **kwargs
        )

    async def start_sandbox(self, sandbox_id: str, storages: Sequence[Message]) -> dict[int, list[Any]]:
        await self.wire.call("Check", {}, service=HEALTH, timeout_ns=30 * SECOND_NS)
        await self._call("CreateSandbox", {1: "pod", 2: [], 3: storages, 4: False, 5: sandbox_id})
        details = await self._call("GetGuestDetails", {1: True, 2: True})
        self.oom = asyncio.create_task(self.wire.call("GetOOMEvent", {}))
        return details

    async def create(
        self,
        container_id: str,
        args: Sequence[str],
        ports: Sequence[int] = (0, 0, 0),
        *,
        terminal: bool = False,
        cpus: int = 1,
    ) -> None:
        assert not any(ports), "the Go runtime passes no streams"
        oci = spec(
            args,
            self.root(container_id),
            capabilities=self.CAPABILITIES,
            namespaces=["ipc", "uts", "mount"],
            annotations={},
            cgroups_path=f"/default/{container_id}",
            terminal=terminal,
        )
        await self._call("CreateContainer", {1: container_id, 2: container_id, 6: oci})

    async def start(self, container_id: str) -> asyncio.Task[int]:
        """It waits only once its streams have ended; the caller reads them first."""
        await self._call("StartContainer", {1: container_id})
        return asyncio.create_task(self.wait(container_id, container_id))

    async def write(self, container_id: str, exec_id: str, data: bytes) -> None:
        for at in range(0, len(data), 32768):
            await self._call("WriteStdin", {1: container_id, 2: exec_id, 3: data[at : at + 32768]})
        await self._call("CloseStdin", {1: container_id, 2: exec_id})

    async def stop_sandbox(self, container_ids: Sequence[str]) -> None:
        for container_id in container_ids:
            with contextlib.suppress(Status):
                await self._call("SignalProcess", {1: container_id, 2: "", 3: 9})
            await self._call("RemoveContainer", {1: container_id})
        await self._call("DestroySandbox", {})
