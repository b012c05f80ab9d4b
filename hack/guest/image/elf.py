"""The little of ELF64 (little-endian) the image needs: named sections and the libraries an object asks for.

Source: System V ABI, ELF-64 object file format.
"""

from __future__ import annotations

import struct

_SHT_NOBITS = 8
_DT_NULL, _DT_NEEDED = 0, 1


class NotElf(ValueError):
    """The bytes are no 64-bit little-endian ELF file, or a truncated one."""


def sections(data: bytes) -> dict[str, bytes]:
    """Contents of the sections by name; without those that have no bytes in the file (.bss)."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise NotElf("no ELF64 little-endian header")
    try:
        (table,) = struct.unpack_from("<Q", data, 0x28)
        entry_size, count, names_index = struct.unpack_from("<HHH", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", data, table + index * entry_size) for index in range(count)]
        *_, names_offset, names_size = headers[names_index]
    except (struct.error, IndexError) as err:
        raise NotElf("truncated ELF section table") from err
    if any(at + size > len(data) for _, kind, _, _, at, size in headers if kind != _SHT_NOBITS):
        raise NotElf("a section lies outside of the ELF file")
    names = data[names_offset : names_offset + names_size]
    return {
        _string(names, name): data[offset : offset + size]
        for name, kind, _flags, _address, offset, size in headers
        if kind not in (0, _SHT_NOBITS)
    }


def needed(data: bytes) -> list[str]:
    """Names of the shared libraries a program or library is linked with (DT_NEEDED); [] when static."""
    parts = sections(data)
    names = parts.get(".dynstr", b"")
    found = []
    for tag, value in struct.iter_unpack("<qQ", parts.get(".dynamic", b"")):
        if tag == _DT_NULL:
            break
        if tag == _DT_NEEDED:
            found.append(_string(names, value))
    return found


def modinfo(data: bytes) -> dict[str, str]:
    """The `key=value` strings of a kernel module; of a repeated key the last."""
    strings = sections(data).get(".modinfo", b"").split(b"\0")
    pairs = (text.decode("utf-8", "replace").partition("=") for text in strings if text)
    return {key: value for key, _, value in pairs}


def _string(table: bytes, offset: int) -> str:
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else len(table)].decode("utf-8", "replace")
