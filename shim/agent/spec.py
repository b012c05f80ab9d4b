"""The runtime spec's JSON as the agent's protocol buffers, and the values in them checked.

The two have the same shape and names but for their spelling: the JSON member `oomScoreAdj` is the field
`oom_score_adj` here. A member without a field is left out, as kata's runtimes do; one of a wrong kind, or a
number that does not fit, is InvalidArgument naming its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeVar

import betterproto

from shim import oci
from shim.errors import InvalidArgument
from shim.pb import grpc

M = TypeVar("M", bound=betterproto.Message)
# JSON value and its path for messages -> field value
Convert = Callable[[Any, str], Any]

_RANGES = {
    betterproto.TYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    betterproto.TYPE_UINT32: (0, (1 << 32) - 1),
    betterproto.TYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    betterproto.TYPE_UINT64: (0, (1 << 64) - 1),
}
# The one name that differs by more than spelling.
_RENAMED: dict[type, dict[str, str]] = {grpc.Spec: {"ociversion": "version"}}


def spec_message(spec: Mapping[str, Any]) -> grpc.Spec:
    """A container's spec for CreateContainer."""
    return _message(grpc.Spec, spec, "spec")


def process_message(process: Mapping[str, Any]) -> grpc.Process:
    """A process for ExecProcess."""
    return _message(grpc.Process, process, "process")


def resources_message(resources: Mapping[str, Any]) -> grpc.LinuxResources:
    """A container's limits for UpdateContainer."""
    return _message(grpc.LinuxResources, resources, "resources")


def cgroup_files(resources: Mapping[str, Any]) -> dict[str, str]:
    """The limits that the message has no field for, as what is written to which file of cgroup v2."""
    cpu, files = oci.section(resources, "cpu"), {}
    for member, file in (("burst", "cpu.max.burst"), ("idle", "cpu.idle")):
        if (value := cpu.get(member)) is not None:
            files[file] = str(_scalar(betterproto.TYPE_INT64)(value, f"resources.cpu.{member}"))
    return files | _text_map(resources.get("unified") or {}, "resources.unified")


def _message(kind: type[M], value: Any, path: str) -> M:
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{path}: not an object")
    fields = _fields(kind)
    found = {}
    for key, item in value.items():
        entry = fields.get(key.lower())
        if entry is not None and item is not None:
            name, convert = entry
            found[name] = convert(item, f"{path}.{key}")
    return kind(**found)


@cache
def _fields(kind: type[betterproto.Message]) -> dict[str, tuple[str, Convert]]:
    """For each lower-case JSON name the field and how its value is made."""
    table: Any = kind()._betterproto  # type: ignore[arg-type]
    fields: dict[str, tuple[str, Convert]] = {}
    for name, meta in table.meta_by_field_name.items():
        convert: Convert
        if meta.proto_type == betterproto.TYPE_MAP:
            convert = _text_map
        elif meta.proto_type == betterproto.TYPE_MESSAGE:
            convert = _nested(table.cls_by_field[name])
        else:
            convert = _scalar(meta.proto_type)
        if table.default_gen[name] is list:
            convert = _each(convert)
        fields[name.replace("_", "")] = (name, convert)
    for key, field in _RENAMED.get(kind, {}).items():
        fields[key] = fields.pop(field)
    return fields


def _nested(kind: type[betterproto.Message]) -> Convert:
    return lambda value, path: _message(kind, value, path)


def _each(convert: Convert) -> Convert:
    def items(value: Any, path: str) -> list[Any]:
        if not isinstance(value, list):
            raise InvalidArgument(f"{path}: not a list")
        return [convert(item, f"{path}[{index}]") for index, item in enumerate(value)]

    return items


def _text_map(value: Any, path: str) -> dict[str, str]:
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for item in value.values()):
        raise InvalidArgument(f"{path}: not an object of strings")
    return {key: _text(item, f"{path}.{key}") for key, item in value.items()}


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{path}: not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{path}: not valid Unicode") from error
    return value


def _flag(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{path}: not true or false")
    return value


def _scalar(proto_type: str) -> Convert:
    if proto_type == betterproto.TYPE_STRING:
        return _text
    if proto_type == betterproto.TYPE_BOOL:
        return _flag
    low, high = _RANGES[proto_type]

    def number(value: Any, path: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidArgument(f"{path}: not a whole number")
        if not low <= value <= high:
            raise InvalidArgument(f"{path}: {value} is not between {low} and {high}")
        return value

    return number
