"""The first lines of the agent's program: what happens before the agent's own modules are imported.

Importing asyncio is the largest part of the agent's start, and a good third of that is modules which something
that it imports uses only in functions that the agent never calls. These are loaded at their first use: nothing
is missing, and nothing is paid for in advance.
"""

from __future__ import annotations

import gc
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# Each costs more than the whole of the agent's own schema: they build classes or compile patterns.
DEFERRED = frozenset(
    (
        "asyncio.sslproto",
        "inspect",  # and with it ast and dis
        "locale",
        "textwrap",
        "tokenize",
    )
)


class _Deferred(ModuleType):
    """A module whose code has not run. The first name that is asked of it runs it.

    importlib's own LazyLoader is of no use here: until Python 3.12 a second import of the module loads it.
    """

    def __getattr__(self, name: str) -> object:
        self.__class__ = ModuleType  # type: ignore[assignment]
        spec = self.__spec__
        assert spec is not None and isinstance(spec.loader, DeferringLoader)
        spec.loader = self.__loader__ = spec.loader.loader
        spec.loader.exec_module(self)
        return getattr(self, name)


class DeferringLoader:
    """Makes a module that `loader` fills when it is used."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> None:
        """The usual module object."""

    def exec_module(self, module: ModuleType) -> None:
        """Wait. The class changes only here, for the import itself has asked the module for names before."""
        module.__class__ = _Deferred


class DeferringFinder:
    """Finds what is in DEFERRED, as the path finder does."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The protocol of sys.meta_path."""
        spec = PathFinder.find_spec(name, path, target) if name in DEFERRED else None
        if spec is not None:
            spec.loader = DeferringLoader(spec.loader)  # type: ignore[assignment]
        return spec


def main() -> None:
    """Entry point of the image's /init."""
    sys.meta_path.insert(0, DeferringFinder)
    gc.disable()  # imports make no garbage, only a heap to look through again and again
    from shim.guest.main import main as run

    gc.freeze()
    gc.enable()
    run()
