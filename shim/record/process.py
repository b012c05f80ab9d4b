"""A process that is known for certain: by pid and start time."""

from __future__ import annotations

import os
import time

from shim.errors import NotFound

# The role of one that has work left when everybody else is dead: what is in its pipes.
LOGGER = "logger"

_SIGKILL = 9  # the signal module costs 2 ms to import
_PF_EXITING = 0x4  # <linux/sched.h>


class Process:
    """A process we started: what for, and pid and start time (clock ticks after boot) that identify it."""

    __slots__ = ("pid", "role", "start_time")

    def __init__(self, role: str, pid: int, start_time: int) -> None:
        self.role, self.pid, self.start_time = role, pid, start_time

    @classmethod
    def find(cls, role: str, pid: int) -> Process:
        """The process that has `pid` now, which must be a child of the caller or the caller itself: nobody
        else's pid is known to be still the same one's. NotFound without one."""
        start_time = _stat(pid).start_time
        if start_time < 0:
            raise NotFound(f"{role}: no process {pid}")
        return cls(role, pid, start_time)

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        found = _stat(self.pid)
        return found.start_time == self.start_time and found.state not in "ZX"

    def ending(self) -> bool:
        """Whether the kernel is taking it apart: it does nothing more, but what it has open may be so still."""
        found = _stat(self.pid)
        return found.start_time == self.start_time and found.ending

    def kill(self) -> None:
        """Send SIGKILL, if it is still there."""
        pidfd = self._open()
        if pidfd is None:
            return
        from signal import pidfd_send_signal

        try:
            pidfd_send_signal(pidfd, _SIGKILL)
        except ProcessLookupError:
            pass  # ended since it was opened
        finally:
            os.close(pidfd)

    def wait_gone(self, deadline: float) -> bool:
        """Until it has ended; False if it has not at `deadline` (`time.monotonic`)."""
        pidfd = self._open()
        if pidfd is None:
            return True
        from select import POLLIN, poll

        try:
            poller = poll()
            poller.register(pidfd, POLLIN)
            poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
            return not self.alive()
        finally:
            os.close(pidfd)

    def _open(self) -> int | None:
        """A pidfd. The start time is looked at after it is open, so it cannot be somebody else's."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive():
            return pidfd
        os.close(pidfd)
        return None


def exiting(pid: int) -> bool:
    """Whether it is about to end, or has ended. The kernel says so before it closes any descriptor of it."""
    return _stat(pid).ending


class _Stat:
    """Of /proc/<pid>/stat (proc(5)); state "X" and start time -1 without such a process."""

    __slots__ = ("flags", "start_time", "state")

    def __init__(self, state: str, flags: int, start_time: int) -> None:
        self.state, self.flags, self.start_time = state, flags, start_time

    @property
    def ending(self) -> bool:
        return self.state in "ZX" or bool(self.flags & _PF_EXITING)


def _stat(pid: int) -> _Stat:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # pid (comm) state ppid ... : comm may hold spaces and parentheses; fields 9 and 22 are flags and start time
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return _Stat("X", 0, -1)
    return _Stat(fields[0].decode(), int(fields[6]), int(fields[19]))
