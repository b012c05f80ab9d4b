"""A log file that keeps its end: for a person who asks later, and never larger than it may be.

<path>      the newest lines
<path>.1    those before, moved there when the file had reached its limit
"""

from __future__ import annotations

import os

# In a sandbox's runtime directory, which is memory: two logs of two files each.
SHIM_LOG, CONSOLE_LOG = "shim.log", "console.log"
LIMIT_BYTES = 256 << 10


class LogFile:
    """What `Log` keeps its lines in. A disk that is full or a directory that is gone costs lines, nothing else."""

    def __init__(self, path: str, limit: int = LIMIT_BYTES) -> None:
        self._path, self._limit = path, limit
        self._fd, self._size = -1, 0
        self._open()

    def write(self, line: bytes) -> None:
        if self._fd < 0:
            return
        if self._size + len(line) > self._limit:
            self._turn_over()
        try:
            self._size += os.write(self._fd, line)
        except OSError:
            return

    def close(self) -> None:
        """No file is written or made from here on. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._fd = os.open(self._path, flags, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError:
            self.close()

    def _turn_over(self) -> None:
        self.close()
        try:
            os.rename(self._path, f"{self._path}.1")
        except OSError:
            return
        self._open()


def read(path: str) -> str:
    """All that is kept, the oldest line first; "" if there is nothing."""
    text = b""
    for name in (f"{path}.1", path):
        try:
            with open(name, "rb") as file:
                text += file.read()
        except FileNotFoundError:
            continue
    return text.decode(errors="replace")
