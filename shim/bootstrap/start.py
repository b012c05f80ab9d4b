"""`start`: find the live shim of the container's group or make one, and say where it listens.

containerd merges stdout and stderr, waits until every holder of them is gone, and takes the result as the
address; so nothing else may be printed, and the daemon must not inherit them. The daemon is this program
again, without an action, with the socket that listens already as fd 3: a connection made now is served as
soon as the daemon is up.
"""

from __future__ import annotations

import os
import time

from shim.bootstrap import address, stdin
from shim.bootstrap.group import group_of
from shim.errors import AlreadyExists, FailedPrecondition, Internal, Unavailable
from shim.record import Record, lock, remove_run_dir, sandbox_dir, teardown
from shim.record.removal import remove_socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from shim.bootstrap.args import Call
    from shim.bootstrap.stdin import StartInput

LISTEN_FD = 3
_DEADLINE_S = 20.0  # a previous shim of the same id may still be ending its VM and telling its events
_SIGPIPE, _SIGXFSZ = 13, 25  # what Python ignores and a child would inherit; `signal` costs 2 ms to import
_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, _SCOPE_PROCESS_GROUP = 62, 1, 2  # <linux/prctl.h>


def start(call: Call, program: str) -> str:
    """The address (`unix://<path>`) of the shim that serves container `call.id`, whose bundle is the working
    directory. It is in the bundle's `address` file too. After an error no new daemon runs."""
    given = stdin.parse(stdin.read(), call.id, call.namespace)
    if given.unread:
        _warn("ignoring what containerd sent on stdin", error=given.unread)
    bundle = os.getcwd()
    group = group_of(bundle, call.id).id
    path = address.socket_path(call.address, call.namespace, group, given.socket_dir)
    ours = address.SCHEME + path
    held = _hold(sandbox_dir(call.namespace, group), path)
    try:
        if held.live:
            address.save(bundle, ours)
            return ours
        try:
            address.save(held.run_dir, ours)
            sock = address.listen(path)
            address.save(bundle, ours)
            _spawn(call, group, given, program, sock.fileno())
            sock.close()
        except BaseException:
            remove_socket(path)
            remove_run_dir(held.run_dir, time.monotonic() + 1)
            raise
        return ours
    finally:
        os.close(held.lock)


class _Held:
    """A locked runtime directory, and whether the sandbox's shim is live."""

    __slots__ = ("live", "lock", "run_dir")

    def __init__(self, lock: int, run_dir: str, live: bool) -> None:
        self.lock, self.run_dir, self.live = lock, run_dir, live


def _hold(run_dir: str, path: str) -> _Held:
    """Lock the sandbox's directory; if its shim is not live, remove what the last one left there."""
    deadline = time.monotonic() + _DEADLINE_S
    while True:
        fd = lock(run_dir, deadline, create=True)
        assert fd is not None
        known = address.load(run_dir)
        try:
            if address.answers(path):
                if known != address.SCHEME + path:
                    # By the same group annotation. The container would run there, outside of a VM.
                    raise FailedPrecondition(f"{path}: the shim of this group is another runtime's")
                return _Held(fd, run_dir, True)
            if not known:
                return _Held(fd, run_dir, False)
            if known != address.SCHEME + path and address.answers(known.removeprefix(address.SCHEME)):
                raise AlreadyExists(f"{run_dir} is in use by the shim at {known}, of another containerd")
            _clear(run_dir, known, deadline)  # and what we locked with it: once more
        except BaseException:
            if not known:
                remove_run_dir(run_dir, deadline)
            os.close(fd)
            raise
        os.close(fd)


def _clear(run_dir: str, known: str, deadline: float) -> None:
    """Remove the leftovers of a shim that does not answer any more, once its process is gone."""
    record = Record.salvage(run_dir, known)
    daemon = record.daemon()
    if daemon and not daemon.wait_gone(deadline):
        raise Unavailable(f"the previous shim of {run_dir} (pid {daemon.pid}) is still shutting down")
    if problems := teardown(record, deadline):
        raise Internal(f"leftovers of the previous shim of {run_dir}: {'; '.join(problems)}")


def _warn(message: str, **fields: object) -> None:
    """To the bundle's log, which containerd copies into its own; stderr would spoil the reply."""
    from shim.log import Log

    try:
        fd = os.open("log", os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return  # a bundle without a log: run by hand
    Log(fd).warning(message, **fields)
    os.close(fd)


def _spawn(call: Call, group: str, given: StartInput, program: str, listener: int) -> None:
    """Start the daemon: its own session, standard fds detached, the listener as fd 3 and nothing else open.
    stderr is the bundle's log FIFO, so that even a failing import shows up in containerd's log."""
    for fd in os.listdir("/proc/self/fd"):
        if int(fd) > 2:
            try:
                os.set_inheritable(int(fd), False)
            except OSError:
                continue  # the listing's own
    if os.environ.get("SCHED_CORE"):
        _create_core_cookie()
    _raise_oom_score()
    _raise_limit_of_files()
    argv = [program, "-namespace", call.namespace, "-address", call.address]
    argv += ["-publish-binary", call.publish_binary, "-id", group]
    if call.debug or given.debug:
        argv.append("-debug")
    log, log_flags = ("log", os.O_RDWR | os.O_NONBLOCK) if _is_fifo("log") else (os.devnull, os.O_RDWR)
    os.posix_spawn(
        program,
        argv,
        _environment(given),
        file_actions=[
            (os.POSIX_SPAWN_DUP2, listener, LISTEN_FD),
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_OPEN, 2, log, log_flags, 0),
        ],
        setsid=True,
        setsigmask=(),
        setsigdef=(_SIGPIPE, _SIGXFSZ),
    )


def _is_fifo(path: str) -> bool:
    try:
        return os.stat(path).st_mode & 0o170000 == 0o010000  # S_IFIFO
    except FileNotFoundError:
        return False


def _environment(given: StartInput) -> dict[str, str]:
    """containerd's environment without what would reach into our Python or talk to its service manager. What
    the runtime options say is for `config.load`: config_path takes KATA_PY_CONFIG's place."""
    kept = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET" and not k.startswith("PYTHON")}
    if given.ttrpc_address:
        kept.setdefault("TTRPC_ADDRESS", given.ttrpc_address)
    if given.config_path:
        kept["KATA_PY_CONFIG"] = given.config_path
    if given.config_body:
        kept["KATA_PY_CONFIG_BODY"] = given.config_body
    return kept


def _raise_oom_score() -> None:
    """The daemon, which inherits ours, goes before containerd does when memory is short."""
    path = "/proc/self/oom_score_adj"
    with open(path) as file:
        score = int(file.read())
    if score < 1000:
        with open(path, "w") as file:
            file.write(str(score + 1))


def _raise_limit_of_files() -> None:
    """As many descriptors as the daemon may have: four go into an exec. A service begins with 1024, and containerd 2
    leaves it at that. (containerd's own shims need not care: Go does.)"""
    from resource import RLIMIT_NOFILE, getrlimit, setrlimit

    _, hard = getrlimit(RLIMIT_NOFILE)
    setrlimit(RLIMIT_NOFILE, (hard, hard))


def _create_core_cookie() -> None:
    """Core scheduling, as containerd asks by SCHED_CORE: our process group's own, inherited by the daemon."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_CREATE, 0, _SCOPE_PROCESS_GROUP, 0) != 0:
        raise Unavailable(f"SCHED_CORE is set, but core scheduling fails: {os.strerror(ctypes.get_errno())}")
