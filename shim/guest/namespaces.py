"""The namespaces that the containers of a sandbox share, kept by bind mounts: none of them has the agent's own.

The ipc and uts namespaces, and for containers with ids of their own a user namespace which such two belong to. crun
would make one for each container, but then containers of a pod could not look into each other (/proc/<pid>/root),
and their root would have no say in what belongs to the sandbox's ipc and uts namespaces.
"""

from __future__ import annotations

import os
import signal

from shim import errors
from shim.guest import syscall

_FLAGS = {"ipc": syscall.CLONE_NEWIPC, "uts": syscall.CLONE_NEWUTS}


def share(directory: str) -> dict[str, str]:
    """New ipc and uts namespaces: type -> path."""
    paths = {}
    for kind, flag in _FLAGS.items():
        own = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscall.unshare(flag)
            try:
                paths[kind] = _keep("self", kind, directory)
            finally:
                syscall.set_namespace(own)
        finally:
            os.close(own)
    return paths


def share_with_ids(directory: str, uids: str, gids: str) -> dict[str, str]:
    """A new user namespace with these ids (`oci.id_maps`), and ipc and uts namespaces in it: type -> path.
    InvalidArgument when the kernel does not take the ids."""
    if (child := os.fork()) == 0:
        _unshare_and_stop()
    _, status = os.waitpid(child, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        raise errors.Internal("no user namespace could be made for the sandbox")
    try:
        for name, text in (("uid", uids), ("gid", gids)):
            try:
                syscall.set_value(f"/proc/{child}/{name}_map", text.replace(":", " ").replace(",", "\n"))
            except OSError as error:
                raise errors.InvalidArgument(f"{name}Mappings {text}: {error.strerror}") from error
        return {kind: _keep(str(child), kind, directory) for kind in ("user", *_FLAGS)}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _unshare_and_stop() -> None:
    """Never returns: a namespace is a process's to begin with."""
    try:
        syscall.unshare(syscall.CLONE_NEWUSER | sum(_FLAGS.values()))
        os.kill(os.getpid(), signal.SIGSTOP)
    finally:
        os._exit(1)


def _keep(process: str, kind: str, directory: str) -> str:
    os.makedirs(directory, exist_ok=True)
    path = f"{directory}/{kind}"
    os.close(os.open(path, os.O_CREAT | os.O_RDONLY | os.O_CLOEXEC, 0o444))
    syscall.mount(f"/proc/{process}/ns/{kind}", path, flags=syscall.MS_BIND)
    return path
