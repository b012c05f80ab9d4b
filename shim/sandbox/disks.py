"""The host's block devices and disk images that containers of a sandbox use: each is in the VM once."""

from __future__ import annotations

import asyncio
import itertools
import os
from dataclasses import dataclass, field
from pathlib import Path

from shim.errors import NotFound, ShimError
from shim.hypervisor.api import Disk, Hypervisor
from shim.log import Log


@dataclass(slots=True)
class _Plugged:
    disk_id: str
    pci_path: str
    users: list[str] = field(default_factory=list)  # a container is in it as often as it uses the disk


class Disks:
    """Of one VM. What is at a path is known by device or inode, so that two names of it are one disk."""

    def __init__(self, hypervisor: Hypervisor, log: Log) -> None:
        self._hypervisor, self._log = hypervisor, log
        self._plugged: dict[tuple[int, int, bool], _Plugged] = {}
        self._count = itertools.count(1)
        self._lock = asyncio.Lock()

    async def plug(self, container_id: str, path: Path, *, read_only: bool) -> str:
        """Bring it into the VM for a container; its PCI path there. NotFound names a path that is not there."""
        try:
            found = os.stat(path)
        except OSError as error:
            raise NotFound(f"block device {path}: {error.strerror}") from error
        identity = (found.st_rdev, 0) if found.st_rdev else (found.st_dev, found.st_ino)
        key = (*identity, read_only)
        async with self._lock:
            if key not in self._plugged:
                disk = Disk(f"disk{next(self._count)}", path, read_only)
                self._plugged[key] = _Plugged(disk.id, await self._hypervisor.add_disk(disk))
            self._plugged[key].users.append(container_id)
            return self._plugged[key].pci_path

    async def remove(self, container_id: str) -> None:
        """The container uses none any more. What nobody uses leaves the VM; what does not is logged."""
        async with self._lock:
            for key, plugged in list(self._plugged.items()):
                if container_id not in plugged.users:
                    continue
                plugged.users = [user for user in plugged.users if user != container_id]
                if plugged.users:
                    continue
                del self._plugged[key]
                try:
                    await self._hypervisor.remove_disk(plugged.disk_id)
                except ShimError as error:
                    self._log.warning("a disk stays in the VM", disk=plugged.disk_id, error=error)
