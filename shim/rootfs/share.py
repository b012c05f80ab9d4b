"""The share of one sandbox: a directory below its run dir, served by virtiofsd.

    <run dir>/points/                 <container id>-<number> each, a directory or file to mount on
    <run dir>/share/                  the same, read-only, a shared mount of its own; the guest mounts it at GUEST_DIR
        <container id>-<number>       one mount each: a rootfs, or a bound directory or file
    <run dir>/layers/                 for a moment the layers of a rootfs whose ids are mapped

The guest is hostile: what it could make beside its mounts would fill the host's memory, and a link in the place of a
name that is to come would lead us elsewhere. A name is used once only: the guest may remember for a second that it does
not exist or what it was.

Everything is mounted in the daemon's mount namespace and unmounted lazily, because virtiofsd keeps what the
guest has cached open. Mounting can block (a network file system), so it happens in a thread; there is one, so
that the undoing of a mount whose caller was cancelled comes after it.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from shim.children import Child
from shim.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, ShimError
from shim.log import Log
from shim.rootfs import virtiofsd
from shim.rootfs.api import Mount
from shim.rootfs.mount import make_shared_root, mount, unmount

TAG = "kataShared"
GUEST_DIR = "/run/kata-containers/shared/containers"

_STOP_TIMEOUT_S = 2.0
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)


class VirtiofsShare:
    """Implements `rootfs.api.RootfsShare`. `program` is virtiofsd's path or name; empty: look for it."""

    def __init__(self, run_dir: Path, log: Log, program: str = "") -> None:
        self._run_dir, self._log, self._program = run_dir, log, program
        self._points, self._dir, self._layers = run_dir / "points", run_dir / "share", run_dir / "layers"
        self._child: Child | None = None
        self._count = 0
        self._made: dict[str, list[Path]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mount")

    @property
    def socket(self) -> Path:
        return self._run_dir / "virtiofsd.sock"

    @property
    def tag(self) -> str:
        return TAG

    @property
    def pid(self) -> int:
        """Host pid of virtiofsd. Raises FailedPrecondition before `start`."""
        return self._running().pid

    async def start(self) -> None:
        if self._child is not None:
            raise FailedPrecondition("this share was started before")
        program = virtiofsd.find(self._program)
        try:
            await self._in_thread(self._make_root, self._dir)
            self._child = await virtiofsd.start(program, self._dir, self.socket, self._on_line)
        except BaseException:
            await self.aclose()
            raise

    async def mount_rootfs(self, container_id: str, mounts: Sequence[Mount]) -> str:
        if not mounts:
            raise InvalidArgument("a rootfs needs at least one mount")
        return await self._mount(container_id, lambda target: self._mount_stack(mounts, target))

    async def bind(
        self,
        container_id: str,
        source: Path,
        *,
        read_only: bool,
        follow: bool = False,
        ids: tuple[str, str] | None = None,
    ) -> str:
        options = ["rbind", "rslave" if follow else "rprivate", *(["ro"] if read_only else [])]
        if ids is not None:
            options += [f"uidmap={ids[0]}", f"gidmap={ids[1]}"]
        spec = Mount("bind", str(source), tuple(options))
        return await self._mount(container_id, lambda target: self._bind(spec, target))

    async def remove(self, container_id: str) -> None:
        for target in reversed(self._made.pop(container_id, [])):
            await self._discard(target)

    async def wait(self) -> str:
        child = self._running()
        status = await child.wait()
        ended = f"exited with {status}" if status >= 0 else f"was killed by signal {-status}"
        lines = child.output_tail.strip().splitlines()
        return f"virtiofsd {ended}" + (f": {lines[-1]}" if lines else "")

    async def aclose(self) -> None:
        if self._child is not None:
            await self._child.terminate(_STOP_TIMEOUT_S)
        for container_id in list(self._made):
            await self.remove(container_id)
        await self._discard(self._dir)
        self.socket.unlink(missing_ok=True)

    def _running(self) -> Child:
        if self._child is None:
            raise FailedPrecondition("the share was not started")
        return self._child

    async def _mount(self, container_id: str, make: Callable[[Path], None]) -> str:
        """Run `make` on a fresh path in the share; its path in the guest. On failure nothing is left."""
        if not _CONTAINER_ID.fullmatch(container_id):
            raise InvalidArgument(f"not a container id: {container_id!r}")
        self._running()
        self._count += 1
        target = self._dir / f"{container_id}-{self._count}"
        try:
            await self._in_thread(make, target)
        except BaseException:
            await self._discard(target)
            raise
        self._made.setdefault(container_id, []).append(target)
        return f"{GUEST_DIR}/{target.name}"

    async def _discard(self, target: Path) -> None:
        """Undo all that was made at `target`; what cannot be undone is logged."""
        try:
            await self._in_thread(self._unmount_stack, target)
        except ShimError as err:
            self._log.error("a mount stays behind", path=target, error=err)

    async def _in_thread(self, function: Callable[[Path], None], path: Path) -> None:
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, function, path)
        except OSError as err:
            raise Internal(f"{path}: {err.strerror}") from err

    def _on_line(self, line: str) -> None:
        self._log.info("virtiofsd", line=line)

    # In the thread.

    def _make_root(self, path: Path) -> None:
        for directory in (self._points, path):
            directory.mkdir(mode=0o700)
        # Root of a user namespace in the guest is nobody here, and has to get through.
        self._points.chmod(0o711)
        make_shared_root(self._points, path)

    def _mount_stack(self, mounts: Sequence[Mount], target: Path) -> None:
        (self._points / target.name).mkdir()
        self._layers.mkdir()
        try:
            for spec in mounts:
                mount(spec, target, self._layers)
        finally:
            self._layers.rmdir()

    def _bind(self, spec: Mount, target: Path) -> None:
        try:
            mode = os.stat(spec.source).st_mode
        except (FileNotFoundError, NotADirectoryError) as err:
            raise NotFound(f"bind mount source {spec.source}: {err.strerror}") from err
        except OSError as err:
            raise Internal(f"bind mount source {spec.source}: {err.strerror}") from err
        point = self._points / target.name
        if stat.S_ISDIR(mode):
            point.mkdir()
        else:
            point.touch()
        mount(spec, target)

    def _unmount_stack(self, target: Path) -> None:
        """Unmount everything stacked on `target` and remove it. Idempotent. Never recursive: what should still be
        mounted below is somebody's data."""
        while unmount(target):
            pass
        for path in (self._dir, self._points) if target == self._dir else (self._points / target.name,):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
