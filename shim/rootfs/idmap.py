"""Mounts that show other owners than the file system has: idmapped ones (mount_setattr(2), MOUNT_ATTR_IDMAP).

The kernel takes the ids from a user namespace, and that from a process in it. Not every file system can be mounted so:
ext4, xfs, btrfs and (from Linux 6.3 on) tmpfs can, an overlay cannot, but its layers can.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from shim.errors import Internal, InvalidArgument


@contextmanager
def user_namespace(uids: str, gids: str) -> Iterator[int]:
    """A descriptor of a user namespace with these ids, each "<on disk>:<shown>:<size>,…". InvalidArgument for ids that
    the kernel does not take."""
    argv = ["unshare", "--user", "sh", "-c", "echo; read _"]  # whose input ends with us
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        said = process.stdout.readline()
        if said != b"\n":
            raise Internal(f"no user namespace: {said.decode(errors='replace').strip()}")
        for name, text in (("uid", uids), ("gid", gids)):
            try:
                with open(f"/proc/{process.pid}/{name}_map", "wb", buffering=0) as file:
                    file.write(text.replace(":", " ").replace(",", "\n").encode())
            except OSError as err:
                raise InvalidArgument(f"{name} mappings {text!r}: {err.strerror}") from err
        fd = os.open(f"/proc/{process.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
