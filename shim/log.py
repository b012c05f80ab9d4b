"""Log lines in logrus' text format, as containerd's own log has them.

    time="2026-11-23T07:42:56.123456789Z" level=info msg="sandbox ready" sandbox=c1 seconds=2.1

containerd copies what a shim writes to the bundle's `log` FIFO to its own stderr, line by line. A write must
never block or fail the caller: the reader may be gone or slow, so a line that does not fit is dropped whole.
The standard `logging` module is left out because the vsock device and the `start` subcommand start without it.
"""

from __future__ import annotations

import os
import time

LEVELS = {"trace": -8, "debug": -4, "info": 0, "warning": 4, "error": 8}
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Keeper(Protocol):
        """A second place for lines (`logfile.LogFile`)."""

        def write(self, line: bytes) -> None: ...


_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._/@^+:,=")


def _quote(value: object) -> str:
    text = str(value)
    if text and _PLAIN.issuperset(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    if not escaped.isprintable():  # a guest's console can say much: character by character only when needed
        escaped = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped)
    return f'"{escaped}"'


def encode(now_ns: int, level: str, message: str, fields: dict[str, object]) -> bytes:
    """One line, newline included. `now_ns` is nanoseconds since the epoch."""
    seconds, nanos = divmod(now_ns, 1_000_000_000)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    parts = [f'time="{stamp}.{nanos:09d}Z" level={level} msg={_quote(message)}']
    parts += [f"{key}={_quote(value)}" for key, value in fields.items()]
    return (" ".join(parts) + "\n").encode(errors="backslashreplace")


class Log:
    """A logger on a file descriptor, with fields that every line carries.

    `fd` should be non-blocking; it is not owned. `level` is the least important level written. `keep` gets every
    line as well; it alone where there is no `fd`.
    """

    __slots__ = ("_fd", "_fields", "_keep", "_level")

    def __init__(
        self, fd: int | None, level: str = "info", keep: Keeper | None = None, **fields: object
    ) -> None:
        self._fd, self._level, self._keep, self._fields = fd, level, keep, fields

    def bind(self, **fields: object) -> Log:
        """A logger on the same descriptor with more fields."""
        return Log(self._fd, self._level, self._keep, **{**self._fields, **fields})

    def debug(self, message: str, **fields: object) -> None:
        self._write("debug", message, fields)

    def info(self, message: str, **fields: object) -> None:
        self._write("info", message, fields)

    def warning(self, message: str, **fields: object) -> None:
        self._write("warning", message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._write("error", message, fields)

    def _write(self, level: str, message: str, fields: dict[str, object]) -> None:
        if LEVELS[level] < LEVELS[self._level]:
            return
        line = encode(time.time_ns(), level, message, {**self._fields, **fields})
        if self._keep is not None:
            self._keep.write(line)
        if self._fd is None:
            return
        try:  # noqa: SIM105 - contextlib would double the start time of `start`
            os.write(self._fd, line)
        except OSError:
            pass  # nobody reads the log, or its pipe is full: there is nowhere left to say so
