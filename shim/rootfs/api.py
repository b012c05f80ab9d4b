"""What a sandbox asks of file sharing: host trees made visible in the guest.

One directory per sandbox is shared; everything a container needs is mounted below it, in the daemon's own
mount namespace, so that nothing is left mounted when the daemon is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from shim.value import Value


class Mount(Value):
    """A mount as containerd describes it (`containerd.types.Mount`): fstab-like options."""

    type: str
    source: str
    options: tuple[str, ...] = ()


class RootfsShare(Protocol):
    """The share of one sandbox. Paths returned are the guest's, below the share's guest mount point."""

    @property
    def socket(self) -> Path:
        """The vhost-user socket a hypervisor connects to."""

    @property
    def tag(self) -> str:
        """The virtiofs tag of the share."""

    @property
    def pid(self) -> int:
        """Host pid of the serving daemon. Raises FailedPrecondition before `start`."""

    async def start(self) -> None:
        """Make the shared directory and start the daemon that serves it; returns when it listens."""

    async def mount_rootfs(self, container_id: str, mounts: Sequence[Mount]) -> str:
        """Mount a container's rootfs (several mounts stack in order). On error nothing stays mounted."""

    async def bind(
        self,
        container_id: str,
        source: Path,
        *,
        read_only: bool,
        follow: bool = False,
        ids: tuple[str, str] | None = None,
    ) -> str:
        """Make a host file or directory visible, with what is mounted below it now and (`follow`) what the host
        mounts or unmounts there later. Read-only is all of it. With `ids` (uids and gids, each
        "<on disk>:<shown>:<size>,…") its owners are mapped. NotFound names a missing source."""

    async def remove(self, container_id: str) -> None:
        """Unmount and forget all that was made for a container. Idempotent, tolerant of busy mounts."""

    async def wait(self) -> str:
        """Until the serving daemon has ended by itself; says how."""

    async def aclose(self) -> None:
        """Unmount everything, stop the daemon, remove the directory. Idempotent."""
