"""`delete`: clean up after a container whose task is gone, by the record on disk alone.

containerd runs it after every normal deletion of a task, after a shim crashed and after a failed Create,
gives it 5 s, and removes the bundle itself afterwards. So most of the time there is nothing to do, the
sandbox's daemon may be alive and serve other containers, and two calls for one id must both succeed.
"""

from __future__ import annotations

import os
import time

from shim.bootstrap import address, messages
from shim.bootstrap.group import Group, group_of
from shim.errors import DataLoss, DeadlineExceeded, NotFound, ShimError
from shim.record import Record, lock, sandbox_dir, teardown
from shim.record.removal import unmount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.bootstrap.args import Call

_DEADLINE_S = 4.0  # containerd kills us after 5
_DYING_S = 1.0
_KILLED = 137


def delete(call: Call) -> tuple[bytes, list[str]]:
    """The serialised DeleteResponse and what could not be cleaned up, in words.

    With the sandbox's daemon alive nothing is touched: it cleans up itself. With the daemon dead the
    container's leftover rootfs mount goes, and the sandbox with the container that stands for it.
    """
    deadline = time.monotonic() + _DEADLINE_S
    problems: list[str] = []
    bundle = call.bundle or _working_directory()
    try:
        group = group_of(bundle, call.id)
    except ShimError as error:
        problems.append(str(error))
        group = Group(call.id)
    run_dir = sandbox_dir(call.namespace, group.id)
    record = _load(run_dir, problems)
    pid = record.containers.get(call.id, 0) if record else 0
    try:
        held = lock(run_dir, deadline, create=False)
    except DeadlineExceeded as error:
        problems.append(str(error))  # a start waits for the daemon to end, which cleans up
    else:
        problems += _clean(call, bundle, group, run_dir, deadline)
        if held is not None:
            os.close(held)
    return messages.delete_response(pid, _KILLED, time.time_ns()), problems


def _clean(call: Call, bundle: str, group: Group, run_dir: str, deadline: float) -> list[str]:
    """With the lock held: remove what a dead daemon left of the container or of its whole sandbox."""
    known = address.load(run_dir) or address.load(bundle)
    known = known or address.SCHEME + address.socket_path(call.address, call.namespace, group.id)
    record = Record.salvage(run_dir, known)
    if lives(record, deadline):
        return []
    problems = _unmount_rootfs(bundle)
    if group.id == call.id or group.named:
        problems += teardown(record, deadline)
    return problems


def lives(record: Record, deadline: float) -> bool:
    """Whether a sandbox has a shim that serves it, or that ends it: what there is of it is then none of ours. With
    the lock held, so that it is not just being started."""
    daemon = record.daemon()
    # containerd knows of a killed shim by its connection, and the kernel may close that before the listening socket.
    ends = daemon is not None and daemon.ending()
    if not ends and record.socket and address.answers(record.socket):
        return True
    if daemon is None:
        return False
    # A shim that shuts down in order removes its socket first and all the rest itself. One that left the socket
    # has crashed, perhaps so lately that the kernel is not done with it; so it may be with one that was ending.
    dying = ends or os.path.exists(record.socket)
    gone = daemon.wait_gone(min(deadline, time.monotonic() + _DYING_S) if dying else 0)
    return not gone and not ends


def _working_directory() -> str:
    """containerd runs us in the bundle; a name for nothing when that is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return "/proc/self/gone"


def _load(run_dir: str, problems: list[str]) -> Record | None:
    try:
        return Record.load(run_dir)
    except NotFound:
        return None
    except DataLoss as error:
        problems.append(str(error))
        return None


def _unmount_rootfs(bundle: str) -> list[str]:
    rootfs = f"{bundle}/rootfs"
    try:
        unmount(rootfs)
    except OSError as error:
        return [f"unmount {rootfs}: {error.strerror}"]
    return []
