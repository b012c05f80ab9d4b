"""Interfaces of a pod whose packets were redirected to its VM: what a network namespace remembers of us.

All else that we put there (taps, a listening socket) hangs on descriptors and is gone with the VM and the daemon."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_COMMAND_S = 2.0


class Redirection:
    """`links` in the namespace at `netns` have, or had, a qdisc `ingress` of ours. `identity` is the namespace's own:
    the path may be another pod's by now."""

    __slots__ = ("identity", "links", "netns")

    def __init__(self, netns: str, identity: str, links: Sequence[str]) -> None:
        self.netns, self.identity, self.links = netns, identity, list(links)

    @classmethod
    def at(cls, netns: str, links: Sequence[str]) -> Redirection:
        """OSError if there is no such namespace."""
        return cls(netns, _identity(os.stat(netns)), links)

    def exists(self) -> bool:
        """Whether the namespace does."""
        try:
            return _identity(os.stat(self.netns)) == self.identity
        except OSError:
            return False

    def undo(self) -> None:
        """Take the qdiscs away, as far as namespace and interfaces still exist. Raises OSError. Idempotent."""
        try:
            fd = os.open(self.netns, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if _identity(os.fstat(fd)) == self.identity:
                for link in self.links:
                    _remove(fd, link)
        finally:
            os.close(fd)


def _identity(stat: os.stat_result) -> str:
    return f"{stat.st_dev}:{stat.st_ino}"


def _remove(netns: int, link: str) -> None:
    if _tc(netns, "del", link) is None and _tc(netns, "show", link):
        raise OSError(f"{link}: its qdisc cannot be removed")


def _tc(netns: int, verb: str, link: str) -> str | None:
    """What tc says; None if it fails, as with an interface or qdisc that is not there."""
    from subprocess import TimeoutExpired, run

    command = ["nsenter", f"--net=/proc/self/fd/{netns}", "--", "tc", "qdisc", verb, "dev", link, "ingress"]
    try:
        done = run(
            command, pass_fds=(netns,), capture_output=True, text=True, timeout=_COMMAND_S, check=False
        )
    except TimeoutExpired as error:
        raise OSError(f"tc qdisc {verb} dev {link}: no end after {_COMMAND_S:g} s") from error
    return done.stdout if done.returncode == 0 else None
