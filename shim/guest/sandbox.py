"""What the agent holds for one VM: the containers of a pod, what they share, and the storages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import Coroutine, Mapping, Sequence

from shim import errors
from shim.guest import cgroup, devices, namespaces, pidns, spec, syscall, sysctl
from shim.guest.container import Container
from shim.guest.mounts import Storages, check_path
from shim.guest.process import Process
from shim.guest.runtime import Runtime
from shim.guest.stdio import PIPE_SIZE, Stdio
from shim.guest.streams import Streams
from shim.log import Log
from shim.oci import KATA_CONTAINER_TYPE, OWN_NAMESPACES, POD_SANDBOX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BASE = "/run/kata-containers"
NAMESPACES = "/run/sandbox-ns"

# Our own shim says so on each container: a port 0 is no stream, never one that is fetched by RPC.
PASSFD_ANNOTATION = "io.kata-py.passfd"

_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_MAX_ID = 255


def verify_id(container_id: str) -> str:
    """A container id becomes part of paths; raises InvalidArgument for one that may not."""
    if len(container_id) > _MAX_ID or not _ID.fullmatch(container_id):
        raise errors.InvalidArgument(f"invalid container id {container_id!r}")
    return container_id


class Sandbox:
    """All state behind the RPCs. Requests are decoded agent.proto messages."""

    def __init__(
        self,
        runtime: Runtime,
        streams: Streams,
        log: Log,
        *,
        base: str = BASE,
        pipe_size: int = PIPE_SIZE,
    ) -> None:
        self._runtime, self._streams, self._log = runtime, streams, log
        self._base, self._pipe_size = base, pipe_size
        self._containers: dict[str, Container] = {}
        self._infra: Container | None = None
        # What containers share, by their ids (`oci.id_maps`).
        self._namespaces: dict[tuple[str, str] | None, dict[str, str]] = {}
        self._pidns = ""
        self._storages = Storages()
        self._tasks: set[asyncio.Task[Any]] = set()
        self.oom_events: asyncio.Queue[str] = asyncio.Queue()

    async def create(self, request: Mapping[str, Any]) -> None:
        """CreateSandbox: host name, shared namespaces, resolv.conf, the sandbox's storages."""
        os.makedirs(f"{self._base}/sandbox", exist_ok=True)
        hostname = request.get("hostname", "")[:64]
        if hostname:
            socket.sethostname(hostname)
        if not self._namespaces:
            self._namespaces[None] = namespaces.share(NAMESPACES)
            if request.get("sandbox_pidns"):
                self._pidns = pidns.hold()
        if request.get("dns"):
            write_resolv_conf(f"{self._base}/sandbox/resolv.conf", request["dns"])
        await self._storages.add(request.get("storages", []))

    async def destroy(self) -> None:
        """DestroySandbox: every container goes. Errors are logged, for the VM goes next."""
        for container_id in list(self._containers):
            try:
                await self.remove_container(container_id)
            except (errors.ShimError, OSError) as error:
                self._log.warning("container not removed", container=container_id, error=error)

    def container(self, container_id: str) -> Container:
        try:
            return self._containers[container_id]
        except KeyError:
            raise errors.NotFound(f"no container {container_id}") from None

    async def create_container(self, request: Mapping[str, Any], claim_s: float) -> None:
        """CreateContainer. Streams are claimed within `claim_s`. On failure nothing stays."""
        container_id = verify_id(request.get("container_id", ""))
        await self._finish(self._create_container(container_id, request, claim_s), container_id)

    async def _create_container(self, container_id: str, request: Mapping[str, Any], claim_s: float) -> None:
        container = self._register(container_id, request)
        try:
            stdio = await self._stdio(container, container.spec["process"], request, claim_s)
            try:
                container.storages = await self._storages.add(request.get("storages", []))
                check_root(container.spec["root"])
                sysctl.set_of_network(container.spec)
                await devices.put_into(container.spec, request.get("devices", []))
            except BaseException:
                stdio.abandon()
                raise
            await container.create(stdio)
        except BaseException:
            await self._discard(container)
            raise

    def _register(self, container_id: str, request: Mapping[str, Any]) -> Container:
        """Claim the id before anything waits, so that a second request for it fails."""
        if container_id in self._containers:
            raise errors.AlreadyExists(f"container {container_id} exists")
        oci = spec.spec_from_proto(request.get("OCI", {}))
        path = cgroup.normalise(oci["linux"].get("cgroupsPath", ""), container_id)
        for other in self._containers.values():
            if cgroup.overlaps(path, other.cgroup):
                raise errors.InvalidArgument(f"cgroupsPath {path} is in use by container {other.id}")
        oci["linux"]["cgroupsPath"] = path
        own = oci.get("annotations", {}).get(OWN_NAMESPACES, "").split(",")
        paths = self._namespace_paths(
            spec.shared_ids(oci, own), shared_pid=bool(request.get("sandbox_pidns"))
        )
        spec.place_namespaces(oci, {kind: path for kind, path in paths.items() if kind not in own})
        container = Container(
            container_id,
            f"{self._base}/{container_id}",
            oci,
            runtime=self._runtime,
            on_oom=lambda: self.oom_events.put_nowait(container_id),
            log=self._log,
        )
        self._containers[container_id] = container
        kind = oci.get("annotations", {}).get(KATA_CONTAINER_TYPE)
        if self._infra is None or kind == POD_SANDBOX:
            self._infra = container
        return container

    def _namespace_paths(self, ids: tuple[str, str] | None, *, shared_pid: bool) -> dict[str, str]:
        """With a shared pid namespace, that of the sandbox, of the pause container or else of the first
        container is joined by the others."""
        if ids is not None and ids not in self._namespaces:
            directory = f"{NAMESPACES}/{len(self._namespaces)}"
            self._namespaces[ids] = namespaces.share_with_ids(directory, *ids)
        shared = self._namespaces.get(ids, {})
        if shared_pid and self._pidns:
            return {**shared, "pid": self._pidns}
        if not shared_pid or self._infra is None:
            return shared
        return {**shared, "pid": f"/proc/{self._infra.init.pid}/ns/pid"}

    async def _stdio(
        self,
        container: Container,
        process: Mapping[str, Any],
        request: Mapping[str, Any],
        claim_s: float,
    ) -> Stdio:
        ports = [request.get(name, 0) for name in ("stdin_port", "stdout_port", "stderr_port")]
        annotations = container.spec.get("annotations", {})
        owner = spec.outer_user(process, container.spec["linux"])
        return Stdio(
            await self._streams.claim(ports, claim_s),
            terminal=bool(process.get("terminal")),
            rpc=not any(ports) and annotations.get(PASSFD_ANNOTATION) != "true",
            owner=owner,
            pipe_size=self._pipe_size,
        )

    async def exec_process(self, request: Mapping[str, Any], claim_s: float) -> None:
        """ExecProcess. On failure nothing stays."""
        container = self.container(request.get("container_id", ""))
        process = spec.process_from_proto(request.get("process", {}))
        if not process["args"]:
            raise errors.InvalidArgument("the process has no args")
        exec_id = request.get("exec_id", "")

        async def start() -> Process:
            stdio = await self._stdio(container, process, request, claim_s)
            return await container.exec(exec_id, process, stdio)

        await self._finish(start(), None)

    async def _finish(self, work: Coroutine[Any, Any, Process | None], container_id: str | None) -> None:
        """Run `work` to its end even if the caller is cancelled (its deadline has passed, its connection is
        gone): crun must not be left alone half-way. Then what it made is undone."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: self._undo(done, container_id))
            raise

    def _undo(self, done: asyncio.Task[Process | None], container_id: str | None) -> None:
        if done.cancelled() or done.exception() is not None:
            return  # it has cleaned up after itself
        process = done.result()
        if process is not None:
            process.signal(signal.SIGKILL)
        elif container_id is not None:
            removal = asyncio.create_task(self.remove_container(container_id))
            self._tasks.add(removal)
            removal.add_done_callback(self._tasks.discard)

    async def remove_container(self, container_id: str, timeout_s: float = 0.0) -> None:
        """RemoveContainer: kill, remove, unmount."""
        await self._finish(self._remove_container(self.container(container_id), timeout_s), None)

    async def _remove_container(self, container: Container, timeout_s: float) -> None:
        try:
            await container.destroy(timeout_s)
        finally:
            self._forget(container)

    async def _discard(self, container: Container) -> None:
        """Remove what a failed creation left, without masking its error."""
        try:
            await container.destroy()
        except (errors.ShimError, OSError) as error:
            self._log.warning("leftover of a failed container", container=container.id, error=error)
        finally:
            self._forget(container)

    def _forget(self, container: Container) -> None:
        self._storages.remove(container.storages)
        below = [point for point in reversed(container.storages) if point.startswith(f"{container.bundle}/")]
        container.storages = []
        for directory in (*below, container.bundle):
            with contextlib.suppress(OSError):  # there never was one, or something of somebody else is in it
                os.rmdir(directory)
        if self._containers.get(container.id) is container:
            del self._containers[container.id]
        if self._infra is container and not self._containers:
            self._infra = None


def check_root(root: dict[str, Any]) -> None:
    """The rootfs must be a directory by now, or crun's message would name only its own mount point."""
    root["path"] = check_path(root.get("path", ""), "rootfs")
    if not os.path.isdir(root["path"]):
        raise errors.NotFound(f"rootfs {root['path']} does not exist")


def write_resolv_conf(path: str, lines: Sequence[str]) -> None:
    """Keep resolv.conf for the containers, and give it to the guest itself if it has a place for it."""
    with open(path, "w") as file:
        file.writelines(f"{line}\n" for line in lines)
    if os.path.exists("/etc/resolv.conf"):
        syscall.mount(path, "/etc/resolv.conf", flags=syscall.MS_BIND)
