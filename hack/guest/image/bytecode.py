"""Compile Python sources to .pyc files that are loaded without a look at their source.

Run as a program by `python.py`, in a process of its own: how `marshal` writes an object depends on what else
refers to it, so equal bytes need an interpreter that did nothing else before. Reads a JSON list of
[source file, name in tracebacks, output file] from stdin.
"""

from __future__ import annotations

import importlib._bootstrap_external as importer  # the one place that knows the layout of a .pyc
import json
import sys


def compile_file(source: str, shown: str, output: str) -> None:
    """`output` becomes an "unchecked hash" .pyc (PEP 552) with optimisation level 0."""
    with open(source, "rb") as file:
        text = file.read()
    code = compile(text, shown, "exec", dont_inherit=True, optimize=0)
    data = importer._code_to_hash_pyc(code, b"\0" * 8, checked=False)  # type: ignore[attr-defined]
    with open(output, "wb") as file:
        file.write(data)


if __name__ == "__main__":
    for task in json.load(sys.stdin):
        compile_file(*task)
