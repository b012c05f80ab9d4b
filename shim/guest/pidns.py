"""A pid namespace that containers share although none of them holds it.

Its first process is a copy of the agent that does nothing but reap: a namespace ends with its first process, so that
may not be a container's. A pause container does the same for pods that have one.
"""

from __future__ import annotations

import contextlib
import os
import signal

from shim import errors
from shim.guest import syscall


def hold() -> str:
    """The path of a new pid namespace, which lasts as long as this guest. Raises OSError."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # unshare() is about the children of who calls it, and the agent's own are to stay where they are.
    if (child := os.fork()) == 0:
        with contextlib.suppress(BaseException):
            syscall.unshare(syscall.CLONE_NEWPID)
            holder = os.fork()
            if holder == 0:
                _reap()
            os.write(writer, str(holder).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    if not said:
        raise errors.Internal("no pid namespace could be made for the sandbox")
    return f"/proc/{said.decode()}/ns/pid"


def _reap() -> None:
    """Never returns. Signals from inside do nothing: the kernel protects the first process of a namespace."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    os.setsid()
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    while True:
        signal.sigwait({signal.SIGCHLD})
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
