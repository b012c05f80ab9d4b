from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vsock.device import RunningDevice


@pytest.fixture
def device(tmp_path: Path) -> Iterator[RunningDevice]:
    """A running device program with a booted guest."""
    running = RunningDevice(tmp_path)
    try:
        running.guest.boot()
        yield running
    finally:
        running.close()
