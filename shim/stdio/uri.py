"""What the stdio fields of a Create or Exec request name.

""                       no stream
/path  or  fifo:///path  a FIFO (or a file: then it is opened as it is)
file:///path             outputs: a log file, appended to
binary:///path?k=v       outputs: a program that logs (binary-v2: one that says with a byte that it is ready)

A URI's path may be percent-encoded, a bare path is taken as it is (net/url of containerd's Go).
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from shim.errors import InvalidArgument
from shim.value import Value

_SCHEMES = "fifo, file, binary, binary-v2"


class Stdio(Value):
    """The stdio of one process as containerd names it; reported back by State as it came."""

    terminal: bool = False
    stdin: str = ""
    stdout: str = ""
    stderr: str = ""


class File(Value):
    """A log file."""

    path: str


class Logger(Value):
    """A program that logs. `sends_byte`: it says with a byte that it is ready, not by closing fd 5 alone."""

    program: str
    args: tuple[str, ...]
    sends_byte: bool


# An output's FIFO, or other file that is there, by its path; or what a URI describes.
Output = str | File | Logger


class Endpoints(Value):
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
    if parts.scheme in ("binary", "binary-v2"):
        return Logger(_absolute(uri, path), _arguments(uri, parts.query), parts.scheme == "binary-v2")
    raise InvalidArgument(f"stdio {uri!r}: unknown scheme {parts.scheme!r}: there are {_SCHEMES}")


def _absolute(uri: str, path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(f"stdio {uri!r}: want an absolute path")
    return path


def _arguments(uri: str, query: str) -> tuple[str, ...]:
    """Keys and values in turn; of a key that comes again, the first value only."""
    values: dict[str, str] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        values.setdefault(key, value)
    args = tuple(word for pair in values.items() for word in pair)
    if any("\0" in word for word in args):
        raise InvalidArgument(f"stdio {uri!r}: a zero byte in an argument")
    return args
