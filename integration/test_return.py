"""What the readers got who left in `test_away.py` and came back while other tests ran."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.away import Absence
from integration.conftest import PAYLOAD, assert_whole


@pytest.fixture(scope="module")
def back(away: Absence) -> Iterator[Absence]:
    """And then nothing of it may be in the way of the tests that follow."""
    yield away
    away.end()


def test_a_reader_that_was_away_for_a_minute_gets_every_byte(back: Absence) -> None:
    assert_whole(back.heads[0] + back.long_text.result())
    assert back.long.wait() == 0


@pytest.mark.vm
def test_and_so_does_one_whose_process_was_deleted_meanwhile(back: Absence) -> None:
    assert back.heads[1] + back.short_text.result() == PAYLOAD[: 2 << 20]
