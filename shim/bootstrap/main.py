"""One program for all of containerd's calls; without an action it is the daemon that `start` spawned."""

from __future__ import annotations

import os

from shim.bootstrap import args
from shim.errors import ShimError


def main(argv: list[str], program: str) -> int | None:
    """Do what `argv` (without the program's name) asks; the exit status, or None when there is no action and
    the caller is to be the daemon. `program` is the path of the script that runs us, which `start` spawns.
    stdout gets the reply and nothing else, stderr one line on failure."""
    what = "containerd-shim-kata-py"
    try:
        call = args.parse(argv)
        what = f"{what} {call.action}".rstrip()
        if call.version:
            from shim.bootstrap import info

            reply = info.version_text()
        elif call.info:
            from shim.bootstrap import info

            reply = info.runtime_info()
        elif call.action == "start":
            from shim.bootstrap.start import start

            reply = start(call, program).encode()
        elif call.action == "delete":
            from shim.bootstrap.delete import delete

            reply, problems = delete(call)
            for problem in problems:
                _complain(f"{what} {call.id}: {problem}")
        else:
            return None
        _write(1, reply)
    except (ShimError, OSError) as error:
        _complain(f"{what}: {error}")
        return 1
    return 0


def _complain(text: str) -> None:
    _write(2, (" ".join(text.split("\n")) + "\n").encode(errors="backslashreplace"))


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
