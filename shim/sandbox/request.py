"""What containerd asks for when it wants a container."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shim.rootfs.api import Mount
from shim.stdio.uri import Stdio


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """`bundle` is a directory, `rootfs` may be empty."""

    id: str
    bundle: Path
    rootfs: tuple[Mount, ...]
    stdio: Stdio
