"""Where a sandbox keeps its runtime files, and the lock on that directory."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from shim.errors import DeadlineExceeded, InvalidArgument

RUN_DIR = "/run/kata-py"

# sockaddr_un.sun_path holds 107 bytes and a NUL; "/" and 20 bytes are left for names in the directory.
_LONGEST_DIR = 107 - 1 - 20
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def check_id(what: str, value: str) -> str:
    """`value` if it can be one component of a path, else InvalidArgument. Containerd's own rule is stricter,
    but a group id comes from an annotation that nobody has checked."""
    if not 0 < len(value) <= 255 or value[0] in "._-" or not _ID_CHARACTERS.issuperset(value):
        raise InvalidArgument(
            f"{what} {value!r}: want 1 to 255 of A-Z a-z 0-9 . _ - with a letter or digit first"
        )
    return value


def sandbox_dir(namespace: str, sandbox_id: str) -> str:
    """The runtime directory of a sandbox; names up to 20 bytes in it fit into a Unix socket address."""
    path = f"{RUN_DIR}/{check_id('namespace', namespace)}/{check_id('sandbox id', sandbox_id)}"
    if len(path) <= _LONGEST_DIR:
        return path
    from hashlib import sha256

    # No namespace begins with "~", so this cannot be another sandbox's directory.
    return f"{RUN_DIR}/~long/{sha256(path.encode()).hexdigest()[:40]}"


def lock(run_dir: str, deadline: float, *, create: bool) -> int | None:
    """A descriptor that holds the sandbox's lock until it is closed; None if the directory is not there and
    `create` is false. DeadlineExceeded when somebody else holds it beyond `deadline` (`time.monotonic`).

    The lock is on the directory itself, which its holder may have removed: then the lock says nothing and a
    new directory is tried.
    """
    while True:
        if create:
            make_run_dir(run_dir)
        try:
            fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except FileNotFoundError:
            if create:
                continue  # pruned by another sandbox's end just now
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), os.stat(run_dir)):
                return fd
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        if time.monotonic() > deadline:
            raise DeadlineExceeded(f"{run_dir}: another start or delete of this sandbox holds its lock")
        time.sleep(0.005)


def make_run_dir(run_dir: str) -> None:
    """Make the directory and its parents. A concurrent `_prune` may take an empty parent away: try again."""
    while not os.path.isdir(run_dir):
        try:
            for path, mode in (
                (RUN_DIR, 0o711),
                (os.path.dirname(run_dir), 0o711),
                (run_dir, 0o700),
            ):
                if not os.path.isdir(path):
                    os.makedirs(os.path.dirname(path), exist_ok=True)
                    os.mkdir(path, mode)
        except (FileExistsError, FileNotFoundError):
            if os.path.lexists(run_dir) and not os.path.isdir(run_dir):
                raise


def prune(run_dir: str) -> None:
    """Remove the directories above that hold no other sandbox."""
    for path in (os.path.dirname(run_dir), RUN_DIR):
        try:
            os.rmdir(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EBUSY):
                raise
            return


def write_file(path: str, text: str) -> None:
    """Replace a file atomically, mode 0600."""
    directory, name = os.path.split(path)
    temporary = f"{directory}/.{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "w") as file:
            file.write(text)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
