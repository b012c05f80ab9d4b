"""Protocol buffers (proto3) from tables: a message is a dict, its type a row of a generated table.

For the programs that must start fast: the guest's agent, `start`/`delete`, and ttrpc's envelope. It imports
nothing that costs; betterproto takes over a second to import in the guest.

The table is `{message: {field number: field}}` with full message names (`grpc.Spec`); a field is one of

    (name, type)                     singular, absent when it has the type's default value
    (name, type, "optional")         singular with presence (`optional`, or the one field of a oneof)
    (name, type, "repeated")
    (name, type, "map", key type)

and a type is a scalar's name as in .proto files, "enum" (an open one, an int32) or a message's full name.

A decoded message holds the fields that were on the wire and nothing else: read it with `.get(name, default)`.
Names are those of the .proto file. Scalars are int, bool, float, str, bytes; a repeated field is a list, a
map a dict. Encoding takes the same; None and, without presence, the default value are left out.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from struct import Struct
from struct import error as StructError

from shim.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:  # `typing` itself is not imported at run time
    from collections.abc import Iterator, Mapping
    from typing import Any

    Table = Mapping[int, tuple[str, ...]]
    Schema = Mapping[str, Table]

MAX_DEPTH = 64  # of nested messages; ours need 6

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MASK64 = (1 << 64) - 1

_FIXED: dict[str, Struct] = {
    "double": Struct("<d"),
    "fixed64": Struct("<Q"),
    "sfixed64": Struct("<q"),
    "float": Struct("<f"),
    "fixed32": Struct("<I"),
    "sfixed32": Struct("<i"),
}
_WIRE_TYPES = dict.fromkeys(
    ("int32", "int64", "uint32", "uint64", "sint32", "sint64", "bool", "enum"), _VARINT
)
_WIRE_TYPES |= {name: _FIXED64 if codec.size == 8 else _FIXED32 for name, codec in _FIXED.items()}
_RANGES = {
    "int32": (-(1 << 31), 1 << 31),
    "sint32": (-(1 << 31), 1 << 31),
    "enum": (-(1 << 31), 1 << 31),
    "int64": (-(1 << 63), 1 << 63),
    "sint64": (-(1 << 63), 1 << 63),
    "uint32": (0, 1 << 32),
    "uint64": (0, 1 << 64),
    "bool": (0, 2),
}
_DEFAULTS: dict[str, Any] = {"string": "", "bytes": b"", "bool": False}


def decode(schema: Schema, message: str, data: bytes) -> dict[str, Any]:
    """The fields of a message that stand in `data`. Raises InvalidArgument for anything but a well-formed
    message of that type; unknown fields are skipped."""
    fields: dict[str, Any] = {}
    _decode_into(fields, schema, schema[message], data, MAX_DEPTH)
    return fields


def encode(schema: Schema, message: str, fields: Mapping[str, Any]) -> bytes:
    """The bytes of a message, fields in the order of their numbers. Raises InvalidArgument for a field the
    message does not have or a value that does not fit its type."""
    out = bytearray()
    table = schema[message]
    known = 0
    for number, field in table.items():
        name = field[0]
        if name not in fields:
            continue
        known += 1
        value = fields[name]
        if value is None:
            continue
        try:
            _write_field(out, schema, number, field, value)
        except InvalidArgument as err:
            raise InvalidArgument(f"{message}.{name}: {err}") from None
        except (TypeError, ValueError, AttributeError, OverflowError, StructError) as err:
            raise InvalidArgument(f"{message}.{name}: {err}") from err
    if known != len(fields):
        unknown = set(fields) - {field[0] for field in table.values()}
        raise InvalidArgument(f"{message} has no field {', '.join(sorted(map(str, unknown)))}")
    return bytes(out)


def contents(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Field number and content of each length-delimited field of any message. InvalidArgument for what is none."""
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        if tag & 7 == _BYTES:
            content, position = _read_bytes(data, position)
            yield tag >> 3, content
        else:
            position = _skip(tag & 7, data, position)


# Reading. Functions take the position to read at and return the one behind; all bounds are checked here.


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while position < len(data):
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            if result >> 64:
                raise InvalidArgument("varint does not fit 64 bits")
            return result, position
        shift += 7
        if shift > 63:
            raise InvalidArgument("varint longer than 10 bytes")
    raise InvalidArgument("truncated varint")


def _read_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    """The content of a length-delimited field."""
    length, position = _read_varint(data, position)
    if length > len(data) - position:
        raise InvalidArgument(f"field of {length} bytes where {len(data) - position} are left")
    return data[position : position + length], position + length


def _from_varint(kind: str, value: int) -> int | bool:
    """The number that the 64 bits of a varint mean; 32-bit types take the lower half, as protobuf does."""
    if kind == "bool":
        return value != 0
    if kind == "uint64":
        return value
    if kind == "int64":
        return value - (1 << 64) if value >> 63 else value
    if kind == "sint64":
        return (value >> 1) ^ -(value & 1)
    value &= 0xFFFFFFFF
    if kind == "uint32":
        return value
    if kind == "sint32":
        return (value >> 1) ^ -(value & 1)
    return value - (1 << 32) if value >> 31 else value


def _read_scalar(kind: str, data: bytes, position: int) -> tuple[Any, int]:
    """A scalar of `kind`, which has the wire type that `_WIRE_TYPES` gives it."""
    codec = _FIXED.get(kind)
    if codec:
        if len(data) - position < codec.size:
            raise InvalidArgument(f"truncated {kind}")
        return codec.unpack_from(data, position)[0], position + codec.size
    if kind in _WIRE_TYPES:
        value, position = _read_varint(data, position)
        return _from_varint(kind, value), position
    content, position = _read_bytes(data, position)
    if kind == "bytes":
        return content, position
    try:
        return content.decode(), position
    except UnicodeDecodeError as err:
        raise InvalidArgument("string is not UTF-8") from err


def _skip(wire_type: int, data: bytes, position: int) -> int:
    """The position after an unknown field."""
    if wire_type == _VARINT:
        return _read_varint(data, position)[1]
    if wire_type == _BYTES:
        return _read_bytes(data, position)[1]
    if wire_type not in (_FIXED64, _FIXED32):
        raise InvalidArgument(f"wire type {wire_type}")  # groups are not part of proto3
    size = 8 if wire_type == _FIXED64 else 4
    if len(data) - position < size:
        raise InvalidArgument("truncated field")
    return position + size


def _decode_into(fields: dict[str, Any], schema: Schema, table: Table, data: bytes, depth: int) -> None:
    """Add what stands in `data` to `fields`, as protobuf merges messages."""
    if depth == 0:
        raise InvalidArgument(f"messages nested deeper than {MAX_DEPTH}")
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise InvalidArgument(f"field number {number}")
        field = table.get(number)
        if field is None:
            position = _skip(wire_type, data, position)
            continue
        name, kind = field[0], field[1]
        label = field[2] if len(field) > 2 else ""
        nested: dict[str, Any]
        if wire_type != (_BYTES if label == "map" else _WIRE_TYPES.get(kind, _BYTES)):
            if label != "repeated" or wire_type != _BYTES:
                # Not how this field is written: an unknown field, as protobuf has it.
                position = _skip(wire_type, data, position)
                continue
            packed, position = _read_bytes(data, position)
            values, at = fields.setdefault(name, []), 0
            while at < len(packed):
                value, at = _read_scalar(kind, packed, at)
                values.append(value)
        elif label == "map":
            content, position = _read_bytes(data, position)
            nested = {"key": _default(field[3]), "value": {} if kind in schema else _default(kind)}
            _decode_into(nested, schema, _entry_table(field), content, depth - 1)
            fields.setdefault(name, {})[nested["key"]] = nested["value"]
        elif kind in schema:
            content, position = _read_bytes(data, position)
            nested = {} if label == "repeated" else fields.setdefault(name, {})
            _decode_into(nested, schema, schema[kind], content, depth - 1)
            if label == "repeated":
                fields.setdefault(name, []).append(nested)
        else:
            value, position = _read_scalar(kind, data, position)
            if label == "repeated":
                fields.setdefault(name, []).append(value)
            else:
                fields[name] = value


# Writing.


def _write_varint(out: bytearray, value: int) -> None:
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)


def _to_varint(kind: str, value: int) -> int:
    """The 64 bits written for a number; negative ones of the plain kinds always fill ten bytes."""
    low, high = _RANGES[kind]
    if not low <= value < high:
        raise InvalidArgument(f"{value} is no {kind}")
    if kind in ("sint32", "sint64"):
        return ((value << 1) ^ (value >> 63)) & _MASK64
    return value & _MASK64


def _write_scalar(out: bytearray, kind: str, value: Any) -> None:
    if kind in _RANGES:
        _write_varint(out, _to_varint(kind, value.__index__()))
    elif kind in _FIXED:
        out += _FIXED[kind].pack(value)
    else:
        content = value.encode() if kind == "string" else memoryview(value)
        _write_varint(out, len(content))
        out += content


def _write_value(out: bytearray, schema: Schema, number: int, kind: str, value: Any) -> None:
    """Tag and value of one occurrence of a field."""
    _write_varint(out, number << 3 | _WIRE_TYPES.get(kind, _BYTES))
    if kind in schema:
        value, kind = encode(schema, kind, value), "bytes"
    _write_scalar(out, kind, value)


def _write_field(out: bytearray, schema: Schema, number: int, field: tuple[str, ...], value: Any) -> None:
    kind = field[1]
    label = field[2] if len(field) > 2 else ""
    if label == "map":
        table = {**schema, "": _entry_table(field)}
        for key, item in value.items():
            entry = encode(table, "", {"key": key, "value": item})
            _write_value(out, schema, number, "bytes", entry)
    elif label == "repeated" and kind in _WIRE_TYPES:
        packed = bytearray()
        for item in value:
            _write_scalar(packed, kind, item)
        if packed:
            _write_value(out, schema, number, "bytes", packed)
    elif label == "repeated":
        for item in value:
            _write_value(out, schema, number, kind, item)
    elif label == "optional" or kind in schema or value != _default(kind):
        _write_value(out, schema, number, kind, value)


def _default(kind: str) -> Any:
    return _DEFAULTS.get(kind, 0)


def _entry_table(field: tuple[str, ...]) -> Table:
    """A map is a repeated message of key and value."""
    return {1: ("key", field[3], "optional"), 2: ("value", field[1], "optional")}
