"""Readers are back who left in `test_away.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.away import Absence
from integration.conftest import PAYLOAD, assert_whole
from integration.exec import opened, read_all


@pytest.fixture(scope="module")
def back(away: Absence) -> Iterator[Absence]:
    """And then nothing of it may be in the way of the tests that follow."""
    away.over()
    yield away
    away.end()


def test_a_reader_that_was_away_for_a_minute_gets_every_byte(back: Absence) -> None:
    with opened(back.long.reader()) as stdout:
        assert_whole(back.heads[0] + read_all(stdout))
    assert back.long.wait() == 0


@pytest.mark.vm
def test_and_so_does_one_whose_process_was_deleted_meanwhile(back: Absence) -> None:
    with opened(back.short.reader()) as stdout:
        assert back.heads[1] + read_all(stdout) == PAYLOAD[: 2 << 20]
