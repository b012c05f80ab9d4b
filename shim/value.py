"""Types whose instances are values: made once, never changed, compared by type and content.

To write `class Disk(Value):` means what `@dataclass(frozen=True)` above it would. A dataclass's methods are written and
compiled for each class, which takes 0.3 to 0.5 ms; every start of a shim defines sixty such types, and QEMU waits for
them.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar, dataclass_transform

V = TypeVar("V", bound="Value")


@dataclass_transform(frozen_default=True)
class Value:
    """The annotated names of a subclass are its fields, in order; what is assigned to one is its default, which all
    instances share. There is no inheritance of fields."""

    _fields: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls._fields = tuple(cls.__annotations__)
        cls.__match_args__ = cls._fields  # type: ignore[misc, attr-defined]

    def __init__(self, *args: Any, **named: Any) -> None:
        fields = self._fields
        if len(args) > len(fields):
            raise TypeError(f"{type(self).__name__} has {len(fields)} fields, not {len(args)}")
        given = dict(zip(fields, args, strict=False))
        if wrong := named.keys() - fields or named.keys() & given.keys():
            raise TypeError(f"{type(self).__name__}: unknown or given twice: {', '.join(sorted(wrong))}")
        given |= named
        for name in fields[len(args) :]:
            if name not in given:
                try:
                    given[name] = getattr(type(self), name)
                except AttributeError:
                    raise TypeError(f"{type(self).__name__} needs {name}") from None
        self.__dict__.update(given)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} cannot be removed")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in self._fields)))

    def __repr__(self) -> str:
        content = ", ".join(f"{name}={self.__dict__[name]!r}" for name in self._fields)
        return f"{type(self).__qualname__}({content})"


def replace(value: V, **changes: Any) -> V:
    """The same with other values in some fields. TypeError for one that it does not have."""
    return type(value)(**(value.__dict__ | changes))
