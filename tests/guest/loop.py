"""Runs a coroutine on a fresh loop with a time limit, and checks that it left no task and no descriptor."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

from shim.guest.loop import Loop


def go(test: Callable[[], Coroutine[Any, Any, None]], *, timeout_s: float = 20.0) -> None:
    before = open_fds()

    async def run() -> None:
        await asyncio.wait_for(test(), timeout_s)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left: {left}"

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(run())
    assert open_fds() == before, "descriptors were leaked"


def open_fds() -> set[str]:
    # A descriptor's number and what it is: a leak shows even if the number was free before.
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
        except FileNotFoundError:
            continue  # the listing's own
    return found


async def eventually(check: Callable[[], bool]) -> None:
    """Let the loop turn until `check` holds; bounded by the test's time limit."""
    while not check():  # noqa: ASYNC110 - there is nothing to wait for but the loop's own events
        await asyncio.sleep(0)
