"""The sandbox's place in the host's cgroups, so that what its VM uses is the pod's.

A host that does not let us (no cgroups, a read-only tree) gets a warning and a pod that is not accounted."""

from __future__ import annotations

import asyncio
import time

from shim.errors import InvalidArgument
from shim.log import Log
from shim.record import Record, cgroup

_REMOVE_S = 2.0


class Accounting:
    """Of one machine. `cgroups_path` is its first container's, "" for none."""

    def __init__(self, cgroups_path: str, record: Record, log: Log) -> None:
        self._cgroups_path, self._record, self._log = cgroups_path, record, log
        self._before: list[str] = []
        self._made: list[str] = []

    def enter(self) -> None:
        """Move the daemon there; what it starts from now on is there too."""
        try:
            if not (paths := cgroup.paths(self._cgroups_path)):
                return
            self._before = cgroup.current()
            self._record.add_cgroups(*paths)
            for path in paths:
                self._made += cgroup.make(path)
                cgroup.enter(path)
        except (OSError, InvalidArgument) as error:
            self._log.warning("the VM is not in the pod's cgroup", path=self._cgroups_path, error=error)

    async def aclose(self) -> None:
        """Leave and remove it, once nothing else is in it. Raises OSError."""
        if not self._record.cgroups:
            return
        for path in self._before:
            cgroup.enter(path)
        deadline = time.monotonic() + _REMOVE_S
        for path in self._record.cgroups:
            await asyncio.to_thread(cgroup.remove, path, deadline)
        self._record.forget_cgroups()
        for path in reversed(self._made):
            try:
                cgroup.remove(path, 0)
            except OSError as error:
                self._log.debug("a cgroup is still of use", path=path, error=error)  # to other pods
        self._made.clear()
