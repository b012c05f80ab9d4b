"""What clients say on the device's Unix socket, and the verbs of a stream's control connection.

    CONNECT <guest port>\\n              ("connect" and "passfd" in any letter case)
    passfd\\n   then, in a message of its own that carries exactly one descriptor:
        <guest port>[ keep| stream]     (no line end needed)

There is never an error line: a bad request is answered by closing the socket.
Words and limits are Dragonball's, so that runtimes written for it work; `stream` is ours (see `api`).

Nothing is read here. The first line is parsed from bytes that were only peeked at: what follows it in the
socket is payload for the guest or the message with the descriptor, and must stay there.
"""

from __future__ import annotations

MAX_LINE = 32
# what may follow the port in the second message of a passfd
PLAIN, KEEP, STREAM = b"", b"keep", b"stream"
PASSFD = -1


class BadRequest(Exception):
    """Not a request we know: close the socket."""


def _port(word: bytes) -> int:
    # isdigit() is true for ASCII digits only; int() would take signs and underscores
    if not word.isdigit() or len(word) > 10 or int(word) > 0xFFFFFFFF:
        raise BadRequest(f"bad port {word[:12]!r}")
    return int(word)


def parse_request(peeked: bytes) -> tuple[int, int] | None:
    """The first line: (guest port, or `PASSFD`; length of the line with its end). None while it is
    incomplete.

    `peeked` may hold anything behind the line. Raises `BadRequest`.
    """
    end = peeked.find(b"\n", 0, MAX_LINE)
    if end < 0:
        if len(peeked) >= MAX_LINE:
            raise BadRequest("line too long")
        return None
    words = peeked[:end].split()
    verb = words[0].lower() if words else b""
    if verb == b"connect" and len(words) == 2:
        return _port(words[1]), end + 1
    if verb == b"passfd" and len(words) == 1:
        return PASSFD, end + 1
    raise BadRequest(f"unknown request {peeked[:end]!r}")


def parse_passfd(message: bytes) -> tuple[int, bytes]:
    """The text beside the descriptor: (guest port, `PLAIN`, `KEEP` or `STREAM`). Raises `BadRequest`.

    Other second words count as none, as Dragonball has it.
    """
    words = message[: MAX_LINE + 1].split()
    if not words or len(message) > MAX_LINE:
        raise BadRequest(f"bad passfd message {message[:MAX_LINE]!r}")
    mode = words[1] if len(words) > 1 and words[1] in (KEEP, STREAM) else PLAIN
    return _port(words[0]), mode


class Verbs:
    """Cuts the bytes of a stream's control connection into lines."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The complete lines, without their ends. Raises `BadRequest` for a line of more than 32 bytes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if any(len(line) >= MAX_LINE for line in (*lines, self._rest)):
            raise BadRequest("line too long")
        return lines


def ok(host_port: int) -> bytes:
    return b"OK %d\n" % host_port


def stat(rx: int, tx: int, stalls: int) -> bytes:
    return b"STAT rx=%d tx=%d stalls=%d\n" % (rx, tx, stalls)


def drained(rx: int, tx: int, stalls: int) -> bytes:
    return b"DRAINED rx=%d tx=%d stalls=%d\n" % (rx, tx, stalls)
