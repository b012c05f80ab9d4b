"""The state of a machine to and from a file: QEMU's migration, without the memory.

    QEMU                                              we
                                   migrate-set-capabilities: events, x-ignore-shared
                                   getfd "state", or from QEMU 8.2 on add-fd (+ the file)
                                   migrate or migrate-incoming, by fd:state or file:/dev/fdset/2
    MIGRATION {"status": "completed"}   or   "failed", or QEMU ends with the reason on stderr
                                   remove-fd

`x-ignore-shared` leaves out memory that is a shared mapping of a file; it is experimental by name only, and
the same from QEMU 4 to 10. Source: qapi/migration.json.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path

from shim.children import Child
from shim.errors import DeadlineExceeded, Internal, ShimError, Unavailable
from shim.hypervisor.api import SnapshotRefused
from shim.hypervisor.qemu.memory import open_saved
from shim.hypervisor.qemu.qmp import Event, Json, QmpClient

_TIMEOUT_S = 30.0
_FD_SET = 2  # the console's is 1 (cmdline)
_STREAM = "fd:state"
_CAPABILITIES: Json = {
    "capabilities": [{"capability": name, "state": True} for name in ("events", "x-ignore-shared")]
}


class Migration:
    """At most one, in or out, of one QEMU. `on_event` is to get all of its events."""

    def __init__(self) -> None:
        self._status: asyncio.Future[str] | None = None

    def on_event(self, event: Event) -> None:
        status = event.data.get("status")
        if event.name != "MIGRATION" or self._status is None or self._status.done():
            return
        if status in ("completed", "failed"):
            self._status.set_result(status)

    async def load(self, qmp: QmpClient, child: Child, state: Path) -> None:
        """Give the file to a QEMU that waits for it; its CPUs stay stopped. Raises SnapshotRefused with QEMU's
        reason; `memory.open_saved`'s errors if it cannot be read; ChildFailed if somebody kills QEMU."""
        fd = open_saved(state)
        try:
            await self._run("migrate-incoming", qmp, child, fd)
        except DeadlineExceeded:
            raise
        except ShimError as error:
            if child.status == -signal.SIGKILL:
                raise
            raise SnapshotRefused(str(error)) from error
        finally:
            os.close(fd)

    async def save(self, qmp: QmpClient, child: Child, state: Path) -> None:
        """Write the state of a QEMU whose CPUs are stopped to a new file."""
        fd = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            await self._run("migrate", qmp, child, fd)
            os.fsync(fd)
        finally:
            os.close(fd)

    async def _run(self, command: str, qmp: QmpClient, child: Child, state: int) -> None:
        """ChildFailed when QEMU ends over it, Internal with its reason when it only fails."""
        await qmp.execute("migrate-set-capabilities", _CAPABILITIES)
        uri = await _hand_over(qmp, state)
        self._status = asyncio.get_running_loop().create_future()
        ended = asyncio.create_task(child.wait())
        try:
            with contextlib.suppress(Unavailable):  # it is ending over it: `ended` tells
                await qmp.execute(command, {"uri": uri})
            done, _ = await asyncio.wait(
                (self._status, ended), timeout=_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            ended.cancel()
        if not done:
            raise DeadlineExceeded(f"QMP {command}: not done after {_TIMEOUT_S:g} s")
        if not self._status.done():
            raise child.failure()
        if self._status.result() != "completed":
            try:
                answer = await qmp.execute("query-migrate")
            except Unavailable:  # it is ending over it, and its own words are better
                await child.wait()
                raise child.failure() from None
            raise Internal(f"QMP {command}: {answer.get('error-desc', 'failed')}")
        if uri != _STREAM:
            await qmp.execute("remove-fd", {"fdset-id": _FD_SET})


async def _hand_over(qmp: QmpClient, state: int) -> str:
    """By what URI QEMU has the file. Newer ones want only streams as `fd:`, older ones do not know `file:`."""
    if qmp.version < (8, 2):
        await qmp.execute("getfd", {"fdname": "state"}, fds=(state,))
        return _STREAM
    await qmp.execute("add-fd", {"fdset-id": _FD_SET}, fds=(state,))
    return f"file:/dev/fdset/{_FD_SET}"
