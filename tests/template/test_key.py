"""What makes a template another one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shim.template.key import File, Inputs
from shim.value import replace

FILE = File("/usr/bin/qemu", 7, 1000, 1_700_000_000_000_000_001, 1_700_000_000_000_000_002)
INPUTS = Inputs(("-m", "256M", "-smp", "1"), (FILE, replace(FILE, path="/vmlinux")))


def test_the_same_inputs_have_the_same_key_and_it_is_short() -> None:
    again = Inputs(tuple(INPUTS.words), tuple(replace(file) for file in INPUTS.files))
    assert again.key == INPUTS.key
    assert len(INPUTS.key) == 16 and int(INPUTS.key, 16) >= 0


@pytest.mark.parametrize("field", sorted(vars(FILE)))
def test_every_field_of_every_file_counts(field: str) -> None:
    value = getattr(FILE, field)
    changed = replace(FILE, **{field: value + 1 if isinstance(value, int) else value + "x"})
    assert Inputs(INPUTS.words, (changed, INPUTS.files[1])).key != INPUTS.key
    assert Inputs(INPUTS.words, (INPUTS.files[0], changed)).key != INPUTS.key


@pytest.mark.parametrize(
    "words",
    [
        ("-m", "256M", "-smp", "2"),
        ("-m", "256M", "-smp"),
        ("-m 256M", "-smp", "1"),
        ("-smp", "1", "-m", "256M"),
    ],
)
def test_every_word_counts_and_so_does_their_order(words: tuple[str, ...]) -> None:
    assert Inputs(words, INPUTS.files).key != INPUTS.key


def test_inputs_go_to_json_and_back() -> None:
    assert Inputs.from_json(json.loads(json.dumps(INPUTS.to_json()))) == INPUTS


@pytest.mark.parametrize(
    "value", [{}, {"words": []}, {"words": [], "files": [{}]}, {"words": [], "files": [1]}]
)
def test_other_json_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError)):
        Inputs.from_json(value)
