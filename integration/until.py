"""Waiting for what comes some time: tests assert on content, not on how long it took."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(what: str, condition: Callable[[], bool], timeout: float = 20) -> None:
    """Polls `condition`; AssertionError naming `what` when it stays false."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout} s: {what}"
        time.sleep(0.1)
