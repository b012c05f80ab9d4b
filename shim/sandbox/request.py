"""What containerd asks for when it wants a container."""

from __future__ import annotations

from pathlib import Path

from shim.rootfs.api import Mount
from shim.stdio.uri import Stdio
from shim.value import Value


class CreateRequest(Value):
    """`bundle` is a directory, `rootfs` may be empty."""

    id: str
    bundle: Path
    rootfs: tuple[Mount, ...]
    stdio: Stdio
