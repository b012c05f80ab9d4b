"""The kinds of settings: what a value must be, how it is written in an annotation, and what it becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

from shim.value import Value


class Rule(Value):
    """`allowed` completes "want ..."; a value is converted after it was checked. `annotation` is the end of the
    name of the annotation that may set it (after io.katacontainers.config.), whose text `read` makes a value of
    (ValueError if it is none)."""

    allowed: str
    check: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value
    annotation: str = ""
    read: Callable[[str], Any] = str


def setting(default: Any, rule: Rule) -> Any:
    """A dataclass field that is a setting."""
    return field(default=default, metadata={"rule": rule})


def whole(default: int, low: int, high: int, annotation: str = "") -> Any:
    def check(value: Any) -> bool:
        return type(value) is int and low <= value <= high

    return setting(default, Rule(f"a whole number from {low} to {high}", check, int, annotation, int))


def seconds(default: float, low: float, high: float) -> Any:
    def check(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return setting(default, Rule(f"seconds from {low:g} to {high:g}", check, float))


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def path(default: Path) -> Any:
    return setting(default, Rule("an absolute path", lambda v: _text(v) and v.startswith("/"), Path))


def program(default: str) -> Any:
    def check(value: Any) -> bool:
        return _text(value) and (value.startswith("/") or "/" not in value)

    return setting(default, Rule("a program's name or absolute path", check))


def one_of(default: str, *words: str) -> Any:
    return setting(default, Rule("one of " + ", ".join(words), lambda v: v in words))


def boolean(default: bool) -> Any:
    return setting(default, Rule("true or false", lambda v: type(v) is bool))


def words(annotation: str = "") -> Any:
    def check(value: Any) -> bool:
        return isinstance(value, list) and all(_text(v) and v and " " not in v for v in value)

    return setting((), Rule("a list of words without spaces", check, tuple, annotation, str.split))


def some_of(default: Sequence[str], choices: Callable[[], Sequence[str]], names: str) -> Any:
    """`choices` is called when there is a value to check; `names` says what they are."""

    def check(value: Any) -> bool:
        return isinstance(value, list) and all(word in choices() for word in value)

    return setting(tuple(default), Rule(names, check, tuple))
