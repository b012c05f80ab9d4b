"""The guest's root file system."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from . import elf, python, recipe
from .cpio import Tree
from .modules import ModuleError, ModuleSet

_LIBRARY_DIR = "lib/x86_64-linux-gnu"


class RootError(Exception):
    """The packages do not have what the image needs."""


def assemble(
    unpacked: Path,
    kernel_modules: Path,
    repository: Path,
    versions: dict[str, object],
    agent: bytes | None = None,
) -> Tree:
    """The whole tree from unpacked packages, a `lib/modules/<release>` directory and the project. With `agent`, that
    program is started instead of ours."""
    tree = Tree()
    for path in recipe.DIRECTORIES:
        tree.add_dir(path)
    tree.add_dir("tmp", 0o1777)
    # The kernel opens /dev/console for /init before anybody can mount a devtmpfs.
    tree.add_char_device("dev/console", 5, 1)
    tree.add_file("init", recipe.OTHER_INIT if agent else recipe.INIT, 0o755)
    if agent:
        tree.add_file(recipe.OTHER_AGENT, agent, 0o755)
    tree.add_file(
        "etc/kata-py/versions.json", json.dumps(versions, indent=1, sort_keys=True).encode() + b"\n"
    )
    for target, source in recipe.PROGRAMS.items():
        tree.add_file(target, _read(unpacked, source), 0o755)
    for path, target in recipe.LINKS.items():
        tree.add_link(path, target)
    python.add_library(tree, unpacked, repository)
    _add_shared_libraries(tree, unpacked)
    try:
        available = ModuleSet(kernel_modules)
        modules = available.in_load_order(recipe.KERNEL_MODULES)
        file_systems = {name: available.in_load_order([name]) for name in recipe.FILE_SYSTEMS}
    except ModuleError as err:
        raise RootError(str(err)) from err
    for name, data in modules.items():
        tree.add_file(f"lib/modules/{name}", data)
    tree.add_file("lib/modules/order", _order(modules))
    for file_system, modules in file_systems.items():
        for name, data in modules.items():
            tree.add_file(f"lib/modules/{file_system}/{name}.z", zlib.compress(data, 9))
        tree.add_file(f"lib/modules/{file_system}/order", _order(modules))
    return tree


def _order(modules: Mapping[str, bytes]) -> bytes:
    return "".join(f"{name}\n" for name in modules).encode()


def _add_shared_libraries(tree: Tree, unpacked: Path) -> None:
    """Every library that a program or library of the tree is linked with, until nothing is missing."""
    pending = [entry.data for _, entry in tree if entry.data[:4] == b"\x7fELF"]
    while pending:
        for name in elf.needed(pending.pop()):
            path = f"{_LIBRARY_DIR}/{name}"
            if path not in tree:
                data = _find_library(unpacked, name)
                tree.add_file(path, data, 0o755)
                pending.append(data)


def _find_library(unpacked: Path, name: str) -> bytes:
    for directory in (_LIBRARY_DIR, f"usr/{_LIBRARY_DIR}"):
        if os.path.lexists(unpacked / directory / name):
            return _read(unpacked, f"{directory}/{name}")
    raise RootError(f"no package of the recipe has {name}")


def _read(unpacked: Path, name: str) -> bytes:
    path = unpacked / name
    if not path.resolve().is_relative_to(unpacked.resolve()):
        raise RootError(f"{name} points out of its package")
    try:
        return path.read_bytes()
    except OSError as err:
        raise RootError(f"no package of the recipe has {name}: {err.strerror}") from err
