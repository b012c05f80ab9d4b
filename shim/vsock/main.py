"""The vsock device's program.

    kata-py-vsock --vhost-user-fd N --listen-fd M --socket-path PATH [--guest-cid 3] [--log-fd 2] [--debug]

N is one end of a connected AF_UNIX stream socket whose other end QEMU holds. M is an AF_UNIX stream socket
bound to PATH and listening; guest connections to host port P are connected to PATH_P.

Exit codes: 0 when the front end left or on SIGTERM; 1 when the front end broke the vhost-user protocol;
2 for wrong arguments.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # the C part: `signal` builds enums, 3 ms of a start
import os
import resource
import sys

from ..log import Log
from .backend import Backend

# two descriptors for each connection, with room to spare
MAX_FDS = 8192
USAGE = 2


def main(argv: list[str] | None = None) -> int:
    """Run the device until its end; the exit code."""
    try:
        options, debug = _parse(sys.argv[1:] if argv is None else argv)
        front_fd, listen_fd = int(options["--vhost-user-fd"]), int(options["--listen-fd"])
        guest_cid, log_fd = int(options.get("--guest-cid", "3")), int(options.get("--log-fd", "2"))
        path = options["--socket-path"]
    except (KeyError, ValueError) as error:
        os.write(2, f"kata-py-vsock: missing or wrong argument: {error}\n".encode())
        return USAGE
    log = Log(log_fd, "debug" if debug else "info", program="vsock", pid=os.getpid())
    for fd in (front_fd, listen_fd):
        os.set_inheritable(fd, False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < MAX_FDS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(MAX_FDS, hard), hard))
    stop_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, lambda *_: os.eventfd_write(stop_fd, 1))
    exit_code = Backend(front_fd, listen_fd, stop_fd, path=path, guest_cid=guest_cid, log=log).run()
    for number in (_signal.SIGTERM, _signal.SIGINT):
        # the interpreter gives handlers up before it exits: a signal then would change the exit code
        _signal.signal(number, _signal.SIG_IGN)
    return exit_code


def _parse(argv: list[str]) -> tuple[dict[str, str], bool]:
    """Options with their values, and whether --debug is there. Raises `ValueError`."""
    known = ("--vhost-user-fd", "--listen-fd", "--socket-path", "--guest-cid", "--log-fd")
    options: dict[str, str] = {}
    debug = False
    words = iter(argv)
    for word in words:
        if word == "--debug":
            debug = True
        elif word in known:
            options[word] = next(words, "")
        else:
            raise ValueError(word)
    return options, debug


if __name__ == "__main__":
    sys.exit(main())
