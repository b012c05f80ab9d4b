"""The shim's socket: its path, whether somebody answers there, how it is made, and the files that hold it.

The path follows containerd's own shims (`pkg/shim/util_unix.go` SocketAddress), one per containerd, namespace
and group of containers. `_socket` and `_sha256` are what `socket` and `hashlib` are made of; those two take
5 ms to import, half of what `start` costs as a whole.
"""

from __future__ import annotations

import os
from _socket import AF_UNIX, SOCK_STREAM
from _socket import socket as Socket

from shim.errors import InvalidArgument
from shim.record import write_file
from shim.record.removal import remove_socket

SOCKET_DIR = "/run/containerd/s"
SCHEME = "unix://"
# containerd refuses longer paths (socketPathLimit)
_LONGEST = 106
_BACKLOG = 128
_CONNECT_TIMEOUT_S = 2.0


def socket_path(grpc_address: str, namespace: str, group: str, socket_dir: str = "") -> str:
    """Where the shim of a group listens. `socket_dir` is what BootstrapParams gives, if any."""
    try:
        from _sha256 import sha256  # type: ignore[import-not-found]
    except ImportError:  # another name in later Pythons
        from hashlib import sha256
    directory = socket_dir or SOCKET_DIR
    if not directory.startswith("/"):
        raise InvalidArgument(f"socket directory {directory!r}: want an absolute path")
    joined = os.path.normpath(f"{grpc_address}/{namespace}/{group}")  # Go's filepath.Join
    path = f"{directory.rstrip('/')}/{sha256(os.fsencode(joined)).hexdigest()}"
    if len(os.fsencode(path)) > _LONGEST:
        raise InvalidArgument(f"socket path {path!r} is longer than {_LONGEST} bytes")
    return path


def answers(path: str) -> bool:
    """Whether somebody listens at `path`. A listener that is too busy to accept counts. Raises OSError when
    that cannot be said, for instance for want of permission."""
    sock = Socket(AF_UNIX, SOCK_STREAM)
    sock.settimeout(_CONNECT_TIMEOUT_S)
    try:
        sock.connect(path)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return False
    except (TimeoutError, BlockingIOError):
        pass
    finally:
        sock.close()
    return True


def listen(path: str) -> Socket:
    """A listening socket at `path`, mode 0600, in place of a stale one; its directory is made, mode 0711."""
    os.makedirs(os.path.dirname(path), mode=0o711, exist_ok=True)
    remove_socket(path)
    sock = Socket(AF_UNIX, SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(mask)
    return sock


def save(directory: str, address: str) -> None:
    """Write `<directory>/address`: mode 0600, no newline, never half of it. containerd 1.x reads a bundle's
    after its own restart, `delete` reads the runtime directory's."""
    write_file(f"{directory}/address", address)


def load(directory: str) -> str:
    """The address that `save` wrote, "" if there is none."""
    try:
        with open(f"{directory}/address") as file:
            return file.read(4096).strip()
    except (FileNotFoundError, NotADirectoryError):
        return ""
