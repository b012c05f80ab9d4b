"""Values behave as frozen dataclasses do."""

from __future__ import annotations

import pytest

from shim.value import Value, replace


class Point(Value):
    """A point."""

    x: int
    y: int = 0

    @property
    def sum(self) -> int:
        return self.x + self.y


class Other(Value):
    x: int
    y: int = 0


class Nothing(Value):
    pass


def test_fields_by_position_by_name_and_by_default() -> None:
    assert (Point(1).x, Point(1).y, Point(1, 2).y, Point(y=4, x=3).sum) == (1, 0, 2, 7)
    assert Nothing() == Nothing()


def test_matched_by_position() -> None:
    match Point(1, 2):
        case Other(_, _):
            raise AssertionError
        case Point(1, y):
            assert y == 2


def test_equal_by_type_and_content() -> None:
    assert Point(1, 2) == Point(1, y=2) and hash(Point(1, 2)) == hash(Point(1, 2))
    assert Point(1) == Point(1, 0)
    assert Point(1, 2) != Point(2, 1)
    assert Point(1, 2) != Other(1, 2) and Point(1, 2) != (1, 2)
    assert len({Point(1), Point(1), Other(1)}) == 2


def test_a_value_does_not_change() -> None:
    point = Point(1)
    for name in ("x", "y", "z"):
        with pytest.raises(AttributeError, match=name):
            setattr(point, name, 5)
        with pytest.raises(AttributeError, match=name):
            delattr(point, name)
    assert point == Point(1)


def test_replace_makes_another_one() -> None:
    point = Point(1, 2)
    assert replace(point, y=3) == Point(1, 3) and replace(point) == point == Point(1, 2)
    with pytest.raises(TypeError, match="z"):
        replace(point, z=1)


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((), {}, "needs x"),
        ((1, 2, 3), {}, "2 fields, not 3"),
        ((1,), {"z": 1}, "z"),
        ((1,), {"x": 2}, "x"),
    ],
)
def test_wrong_fields_are_named(args: tuple[int, ...], named: dict[str, int], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Point(*args, **named)


def test_repr_reads_as_what_made_it() -> None:
    assert repr(Point(1, 2)) == "Point(x=1, y=2)"
    assert repr(Nothing()) == "Nothing()"
