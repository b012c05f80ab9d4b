"""Start the virtiofs daemon of the distribution.

There are two with different command lines: the C one that came with QEMU up to 7.2 (options in `-o`), and the
Rust one. Both get a listening socket that is already bound, so that a hypervisor can connect at once.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

from shim.children import Child, find_program, spawn
from shim.errors import FailedPrecondition

_PLACES = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd", "virtiofsd")


def find(setting: str = "") -> str:
    """The daemon's path: the setting (a path or a name), or where distributions put it. Raises NotFound."""
    return find_program((setting,) if setting else _PLACES)


def arguments(*, is_rust: bool, shared_dir: Path, fd: int) -> list[str]:
    """Everything after the program's name. Names are cached for a second, attributes too (`auto`).

    The daemon confines itself to the directory in namespaces of its own. Submounts are not announced: as
    automounts in the guest they would stay busy on the host when a container is removed.
    """
    if is_rust:
        return [
            f"--fd={fd}",
            f"--shared-dir={shared_dir}",
            "--sandbox=namespace",
            "--cache=auto",
            "--xattr",
            "--no-announce-submounts",
            "--log-level=warn",
        ]
    options = f"source={shared_dir},sandbox=namespace,cache=auto,xattr,log_level=warn"
    return [f"--fd={fd}", "-f", "-o", options]


async def start(program: str, shared_dir: Path, path: Path, on_line: Callable[[str], None]) -> Child:
    """Run the daemon listening on the Unix socket `path`. It serves one connection, then ends."""
    if "," in str(shared_dir):
        raise FailedPrecondition(f"virtiofsd cannot share a directory with a comma in its name: {shared_dir}")
    is_rust = await _is_rust(program)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        options = arguments(is_rust=is_rust, shared_dir=shared_dir, fd=listener.fileno())
        return spawn([program, *options], pass_fds=(listener.fileno(),), on_line=on_line)


async def _is_rust(program: str) -> bool:
    """By what `--version` says: "virtiofsd 1.10.0", or "virtiofsd version 7.2.22 (Debian …)" of the C one."""
    child = spawn([program, "--version"])
    if await child.wait():
        raise child.failure()
    return not child.output_tail.startswith("virtiofsd version ")
