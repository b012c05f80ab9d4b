"""Tasks that outlive the call that began them, with one owner that ends them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from shim.errors import ShimError
from shim.log import Log

T = TypeVar("T")


class Background:
    """Runs coroutines as tasks. An error nobody waits for is logged; `aclose` cancels what is left."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._tasks: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def finish(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """The result of `work`, which goes on to its end even when the caller is cancelled: a request whose
        connection breaks must not leave a container half made."""
        return await asyncio.shield(self.spawn(work, name))

    async def aclose(self) -> None:
        """Cancel all and wait for them. The caller's own task is left alone."""
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not isinstance(error, ShimError):
            self._log.error("unexpected error", task=task.get_name(), error=repr(error))
        else:
            self._log.debug("task failed", task=task.get_name(), error=error)
