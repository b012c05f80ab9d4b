"""A file tree in memory and its encoding as a "newc" cpio archive, the kernel's initramfs format.

One entry is a header of 110 ASCII bytes, the name with a NUL, and the data; name and data are each padded
with NULs so that the next part begins at a multiple of 4:

    "070701" ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
             (13 numbers of 8 hex digits)

The encoding depends on the tree alone (sorted names, all times and owners 0), so equal trees give
equal bytes.
Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True, slots=True)
class Entry:
    """What is at one path: `mode` with its file type, the content or link target, a device number."""

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


class Tree:
    """Paths (relative to the root, no leading slash) and their entries. Parent directories are implied."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def add_dir(self, path: str, mode: int = 0o755) -> None:
        self._put(path, Entry(stat.S_IFDIR | mode))

    def add_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        self._put(path, Entry(stat.S_IFREG | mode, data))

    def add_link(self, path: str, target: str) -> None:
        self._put(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def add_char_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._put(path, Entry(stat.S_IFCHR | mode, device=(major, minor)))

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        return iter(sorted(self._entries.items()))

    def _put(self, path: str, entry: Entry) -> None:
        pure = PurePosixPath(path)
        if pure.is_absolute() or ".." in pure.parts or str(pure) != path:
            raise ValueError(f"not a plain relative path: {path!r}")
        for parent in pure.parents[:-1]:
            self._entries.setdefault(str(parent), Entry(stat.S_IFDIR | 0o755))
        self._entries[path] = entry


def _pad(length: int) -> bytes:
    return b"\0" * (-length % 4)


def _record(ino: int, name: str, entry: Entry) -> bytes:
    path = name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    numbers = (ino, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % number for number in numbers)
    return header + path + _pad(len(header) + len(path)) + entry.data + _pad(len(entry.data))


def encode(tree: Tree) -> bytes:
    """The whole archive, trailer included."""
    records = [_record(ino, name, entry) for ino, (name, entry) in enumerate(tree, 1)]
    records.append(_record(0, "TRAILER!!!", Entry(0)))
    return b"".join(records)
