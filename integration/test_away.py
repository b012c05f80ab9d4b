"""A reader leaves for a minute and more. `test_return.py`, other tests later, sees what has become of it."""

from __future__ import annotations

import time

import pytest

from integration.away import Absence
from integration.conftest import PAYLOAD


def test_a_reader_leaves_for_a_minute(away: Absence) -> None:
    """And the other tests go on meanwhile."""
    assert b"".join(away.heads) == 2 * PAYLOAD[:65536]
    assert away.long.runs()


@pytest.mark.vm
def test_a_process_can_end_and_be_deleted_while_its_reader_is_away(away: Absence) -> None:
    """Half of its output is still in the guest."""
    started = time.monotonic()
    assert away.end_the_short_one() == 0
    assert time.monotonic() - started < 15, "the exit is told after a bounded grace"
