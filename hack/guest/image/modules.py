"""Kernel modules in the order they must be loaded, as small as they can be."""

from __future__ import annotations

import lzma
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from . import elf

_SIGNATURE_MAGIC = b"~Module signature appended~\n"


class ModuleError(Exception):
    """The kernel does not have a module that the recipe wants."""


class ModuleSet:
    """The modules below one `lib/modules/<release>` directory of an unpacked kernel package."""

    def __init__(self, directory: Path) -> None:
        self._files = {
            _name(path.name): path
            for path in sorted(directory.rglob("*.ko*"))
            if path.name.endswith((".ko", ".ko.xz"))
        }
        builtin = directory / "modules.builtin"
        self._builtin = (
            {_name(line.rsplit("/", 1)[-1]) for line in builtin.read_text().split()}
            if builtin.exists()
            else set()
        )

    def in_load_order(self, wanted: Iterable[str]) -> dict[str, bytes]:
        """File name -> contents of the wanted modules and all they depend on, each after what it needs.

        Modules built into this kernel are left out; ModuleError names one that it does not have.
        """
        loaded: dict[str, bytes] = {}

        def visit(name: str) -> None:
            file_name = f"{name}.ko"
            if name in self._builtin or file_name in loaded:
                return
            data = self._read(name)
            for dependency in filter(None, elf.modinfo(data).get("depends", "").split(",")):
                visit(_name(dependency))
            loaded[file_name] = data

        for name in wanted:
            visit(name)
        return loaded

    def _read(self, name: str) -> bytes:
        if name not in self._files:
            raise ModuleError(f"this kernel has no module {name}")
        path = self._files[name]
        data = path.read_bytes()
        return strip_signature(lzma.decompress(data) if path.name.endswith(".xz") else data)


def strip_signature(module: bytes) -> bytes:
    """The module without the signature appended to it: the guest enforces none, and checking it costs time.

    End of a signed file: signature, struct module_signature (12 bytes, the last 4 its length, big endian),
    the magic. Source: Linux include/linux/module_signature.h.
    """
    if not module.endswith(_SIGNATURE_MAGIC):
        return module
    body = module[: -len(_SIGNATURE_MAGIC)]
    (length,) = struct.unpack(">I", body[-4:])
    if length + 12 > len(body):
        raise ValueError("the module's signature is longer than the module")
    return body[: len(body) - 12 - length]


def _name(file_name: str) -> str:
    return re.sub(r"\.ko(\.xz)?$", "", file_name).replace("-", "_")
