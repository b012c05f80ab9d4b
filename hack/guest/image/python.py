"""The guest's Python library: the trimmed standard library and the project's modules, as bytecode only.

A tree of .pyc in place of the .py was the quickest to start of all forms tried (zip, __pycache__, sources).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from . import recipe
from .cpio import Tree

LIBRARY = "usr/lib/python3.11"


class PythonError(Exception):
    """The library cannot be made."""


def standard_sources(library: Path) -> Iterator[tuple[str, Path]]:
    """(path inside the library, file) of the wanted part of an unpacked standard library."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        top = relative.parts[0].removesuffix(".py")
        if top not in recipe.STDLIB or recipe.DROPPED_DIRECTORIES.intersection(relative.parts):
            continue
        if top == "encodings" and path.stem not in recipe.ENCODINGS:
            continue
        yield str(relative), path


def project_sources(repository: Path) -> Iterator[tuple[str, Path]]:
    """(path inside the library, file) of the project's modules the guest has."""
    for name in recipe.PROJECT:
        path = repository / name
        if not path.exists():
            raise PythonError(f"the project has no {name}")
        for file in sorted(path.rglob("*.py")) if path.is_dir() else (path,):
            yield str(file.relative_to(repository)), file


def add_library(tree: Tree, unpacked: Path, repository: Path) -> None:
    """Put compiled standard library, extension modules and project below `usr/lib/python3.11`."""
    if sys.version_info[:2] != (3, 11):
        raise PythonError("run the builder with the Python 3.11 of Debian 12: bytecode is per version")
    library = unpacked / LIBRARY
    sources = [*standard_sources(library), *project_sources(repository)]
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch) / str(index) for index in range(len(sources))]
        tasks = [
            (str(path), f"/{LIBRARY}/{name}", str(output))
            for (name, path), output in zip(sources, outputs, strict=True)
        ]
        compiler = [sys.executable, "-I", "-S", str(Path(__file__).with_name("bytecode.py"))]
        done = subprocess.run(compiler, input=json.dumps(tasks), text=True, capture_output=True, check=False)
        if done.returncode:
            raise PythonError(f"compiling failed: {done.stderr.strip()}")
        for (name, _), output in zip(sources, outputs, strict=True):
            tree.add_file(f"{LIBRARY}/{name}c", output.read_bytes())
    for path in sorted((library / "lib-dynload").glob("*.so")):
        if path.name.partition(".")[0] in recipe.EXTENSIONS:
            tree.add_file(f"{LIBRARY}/lib-dynload/{path.name}", path.read_bytes(), 0o755)
