"""A file share that mounts nothing: it remembers what would be there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from shim.errors import NotFound, ShimError
from shim.rootfs.api import Mount


class FakeShare:
    """Implements `rootfs.api.RootfsShare`. `fail` maps the name of a method to the error it raises; `mounted` has
    what each container has mounted."""

    def __init__(self) -> None:
        self.fail: dict[str, ShimError] = {}
        self.calls: list[str] = []
        self.mounted: dict[str, list[str]] = {}
        self.ids: dict[str, tuple[str, str] | None] = {}
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    @property
    def socket(self) -> Path:
        return Path("/nowhere/virtiofsd.sock")

    @property
    def tag(self) -> str:
        return "kataShared"

    @property
    def pid(self) -> int:
        return os.getpid()

    async def start(self) -> None:
        self._do("start")

    async def mount_rootfs(self, container_id: str, mounts: Sequence[Mount]) -> str:
        self._do("mount_rootfs")
        self.mounted.setdefault(container_id, []).append(mounts[0].source)
        return f"/guest/{container_id}/rootfs"

    async def bind(
        self,
        container_id: str,
        source: Path,
        *,
        read_only: bool,
        follow: bool = False,
        ids: tuple[str, str] | None = None,
    ) -> str:
        self._do("bind")
        if not os.path.exists(source):  # noqa: ASYNC240 - a fake
            raise NotFound(f"{source}: no such file")
        self.mounted.setdefault(container_id, []).append(str(source))
        self.ids[str(source)] = ids
        return f"/guest/{container_id}{source}"

    async def remove(self, container_id: str) -> None:
        self._do("remove")
        self.mounted.pop(container_id, None)

    async def wait(self) -> str:
        return await asyncio.shield(self._ended)

    def die(self) -> None:
        self._ended.set_result("virtiofsd was killed by SIGKILL")

    async def aclose(self) -> None:
        self._do("aclose")
        self.mounted.clear()

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if call in self.fail:
            raise self.fail[call]
