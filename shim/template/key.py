"""What a template's key is made of. Two VMs with one key are the same machine with the same guest in it.

Files are known by what `stat` says and not by their content: the kernel and the image are 75 MB, which nobody
reads at each start. Whatever writes, replaces or touches a file changes its ctime, so a template is at worst
made once too often.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from shim.value import Value

# Goes up when a template of an older version must not be used.
_FORMAT = 1


class File(Value):
    """A file as it was: times in nanoseconds, size in bytes."""

    path: str
    inode: int
    size: int
    mtime: int
    ctime: int


class Inputs(Value):
    """All that must be the same: the machine in the hypervisor's words, and the files it is made of."""

    words: tuple[str, ...]
    files: tuple[File, ...]

    @property
    def key(self) -> str:
        """16 hexadecimal digits."""
        text = json.dumps([_FORMAT, self.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {"words": list(self.words), "files": [vars(file) for file in self.files]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Inputs:
        """Raises KeyError or TypeError for anything that `to_json` has not made."""
        files = tuple(File(**file) for file in value["files"])
        return cls(tuple(value["words"]), files)
