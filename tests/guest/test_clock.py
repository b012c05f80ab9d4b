"""Which clock an emulated guest uses, by what its kernel knows of the TSC."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from shim.guest import clock
from shim.log import Log

LOG = Log(2, "error")


def used(tmp_path: Path, current: str, rates: Iterator[float]) -> str:
    path = tmp_path / "current_clocksource"
    path.write_text(f"{current}\n")
    clock.choose(LOG, str(tmp_path), lambda: next(rates))
    return path.read_text().strip()


def test_the_tsc_is_used_when_its_rate_is_known(tmp_path: Path) -> None:
    assert used(tmp_path, "acpi_pm", itertools.repeat(0.99)) == "tsc"


def test_one_good_measurement_is_enough(tmp_path: Path) -> None:
    """Whatever else ran meanwhile makes the others too small."""
    assert used(tmp_path, "acpi_pm", iter([0.5, 0.2, 1.001])) == "tsc"


@pytest.mark.parametrize("rate", [8.25, 0.12, 1.05])
def test_a_tsc_whose_rate_is_wrong_is_not_the_clock(tmp_path: Path, rate: float) -> None:
    assert used(tmp_path, "acpi_pm", itertools.repeat(rate)) == "acpi_pm"


def test_another_clock_is_left_alone(tmp_path: Path) -> None:
    assert used(tmp_path, "kvm-clock", iter(())) == "kvm-clock"


def test_the_rate_is_that_of_one_clock_by_the_other() -> None:
    now = itertools.count(0, 10_000)  # each look at the real clock takes 10 µs
    real = 0

    def real_ns() -> int:
        nonlocal real
        real = next(now)
        return real

    assert clock.tsc_rate(real_ns, lambda: 8 * real) == pytest.approx(8, rel=0.01)
