"""What crun's `start` and `delete` come down to for an ordinary container, done without running crun.

A run of crun is 70 ms under TCG, most of it the dynamic linker's, and there are three in the life of a container.
These two do next to nothing (crun 1.8, libcrun/container.c and status.c):

    start    a byte into <state>/exec.fifo, which the init process waits for, and the FIFO removed
    delete   the cgroup and <state> removed

Both functions do it all or say False: then crun is to be run, and finds out what is unusual.
"""

from __future__ import annotations

import os


def start(state: str) -> bool:
    """Let the init process go on. False when it does not wait at the FIFO in the way expected."""
    try:
        fifo = os.open(f"{state}/exec.fifo", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # ENOENT: no such container, or it was started; ENXIO: nobody waits yet, or any more
        return False
    try:
        os.unlink(f"{state}/exec.fifo")
        os.write(fifo, b"\0")
    finally:
        os.close(fifo)
    return True


def delete(state: str, cgroup: str) -> bool:
    """Remove what is left of a container whose init process has ended. False when something is in the way."""
    try:
        os.rmdir(cgroup)
        for name in os.listdir(state):
            # devs: where crun has made the devices of a container with a user namespace; in a mount that is gone
            (os.rmdir if name == "devs" else os.unlink)(f"{state}/{name}")
        os.rmdir(state)
    except OSError:  # EBUSY, say: a process is still ending, or the container has made cgroups of its own
        return False
    return True
