"""What the stdio fields of a Create or Exec request name.

""                       no stream
/path  or  fifo:///path  a FIFO (or a file: then it is opened as it is)
file:///path             outputs: a log file, appended to

A URI's path may be percent-encoded, a bare path is taken as it is (net/url of containerd's Go).
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from shim.errors import InvalidArgument

_SCHEMES = "fifo, file"


@dataclass(frozen=True, slots=True)
class Stdio:
    """The stdio of one process as containerd names it; reported back by State as it came."""

    terminal: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


@dataclass(frozen=True, slots=True)
class File:
    """A log file."""

    path: str


# An output's FIFO, or other file that is there, by its path; or what a URI describes.
Output = str | File


@dataclass(frozen=True, slots=True)
class Endpoints:
    """What to open; None = no such stream."""

    stdin: str | None
    stdout: Output | None
    stderr: Output | None


def parse(stdio: Stdio) -> Endpoints:
    """A terminal has no stderr, even if one is given.

    InvalidArgument for what cannot be served, naming the URI. (Not Unimplemented: containerd takes that answer to
    Create for an old shim and tries the older service.)"""
    stdin = _output(stdio.stdin)
    if not isinstance(stdin, str | None):
        raise InvalidArgument(f"stdio {stdio.stdin!r}: stdin is read from a FIFO")
    return Endpoints(stdin, _output(stdio.stdout), None if stdio.terminal else _output(stdio.stderr))


def _output(uri: str) -> Output | None:
    if not uri:
        return None
    if "://" not in uri:
        return _absolute(uri, uri)
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise InvalidArgument(f"stdio {uri!r}: {error}") from error
    path = unquote(parts.path) if not parts.netloc else ""  # file://log is no path
    if parts.scheme == "fifo":
        return _absolute(uri, path)
    if parts.scheme == "file":
        return File(_absolute(uri, path))
    raise InvalidArgument(f"stdio {uri!r}: unknown scheme {parts.scheme!r}: there are {_SCHEMES}")


def _absolute(uri: str, path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"stdio {uri!r}: want an absolute path")
    return path
