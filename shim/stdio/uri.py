"""What the stdio fields of a Create or Exec request name.

""                       no stream
/path  or  fifo:///path  a FIFO (or a file: then it is opened as it is)
file://, binary://       loggers, not served yet
"""

from __future__ import annotations

from dataclasses import dataclass

from shim.errors import InvalidArgument

_LOGGERS = {"file", "binary", "binary-v2", "ttrpc+unix"}


@dataclass(frozen=True, slots=True)
class Stdio:
    """The stdio of one process as containerd names it; reported back by State as it came."""

    terminal: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The paths to open; None = no such stream."""

    stdin: str | None
    stdout: str | None
    stderr: str | None


def parse(stdio: Stdio) -> Endpoints:
    """The paths to open. A terminal has no stderr, even if a path is given.

    InvalidArgument for anything else than a FIFO's path, naming the URI. (Not Unimplemented: containerd takes
    that answer to Create for an old shim and tries the older service.)"""
    return Endpoints(
        stdin=_path(stdio.stdin),
        stdout=_path(stdio.stdout),
        stderr=None if stdio.terminal else _path(stdio.stderr),
    )


def _path(uri: str) -> str | None:
    if not uri:
        return None
    scheme, colon, rest = uri.partition("://")
    if not colon:
        path = uri
    elif scheme == "fifo":
        path = rest
    elif scheme in _LOGGERS:
        raise InvalidArgument(f"stdio {uri!r}: {scheme}:// is not supported")
    else:
        raise InvalidArgument(f"stdio {uri!r}: unknown scheme {scheme!r}")
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"stdio {uri!r}: want an absolute path")
    return path
