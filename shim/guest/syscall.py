"""System calls Python 3.11 has no function for, through ctypes; constants as in the kernel's uapi headers.

Every function raises OSError with the path (or name) it was about.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_MANDLOCK = 0x40
MS_DIRSYNC = 0x80
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MNT_DETACH = 0x2

CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

IN_MODIFY = 0x2

RB_POWER_OFF = 0x4321FEDC

_PR_SET_CHILD_SUBREAPER = 36
_RNDADDENTROPY = 0x40085203
_RNDRESEEDCRNG = 0x5207
_INIT_MODULE = {"x86_64": 175, "aarch64": 105}
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273}

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, subject: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), subject)
    return result


def mount(source: str, target: str, fstype: str = "", flags: int = 0, data: str = "") -> None:
    """mount(2). An empty `fstype` or `data` is passed as NULL."""
    _check(
        _libc.mount(
            source.encode(),
            target.encode(),
            fstype.encode() or None,
            ctypes.c_ulong(flags),
            data.encode() or None,
        ),
        target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(target.encode(), flags), target)


def load_module(path: str, parameters: str = "") -> None:
    """finit_module(2) on an uncompressed module file. A module that is already there is no error."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.syscall(_FINIT_MODULE[os.uname().machine], fd, parameters.encode(), 0), path)
    except FileExistsError:
        pass
    finally:
        os.close(fd)


def load_module_data(data: bytes, name: str) -> None:
    """init_module(2): a module's file that is in memory. One that is already there is no error."""
    length = ctypes.c_ulong(len(data))
    with contextlib.suppress(FileExistsError):
        _check(_libc.syscall(_INIT_MODULE[os.uname().machine], data, length, b""), name)


def set_value(path: str, value: str) -> None:
    """Write to one of the kernel's own files, a parameter or a limit, in one piece; none is created."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def unshare(flags: int) -> None:
    """unshare(2) of the calling thread."""
    _check(_libc.unshare(flags), "unshare")


def set_namespace(fd: int) -> None:
    """setns(2) of the calling thread to the namespace file `fd`."""
    _check(_libc.setns(fd, 0), "setns")


def set_subreaper() -> None:
    """Orphans below this process become its children (of no effect on pid 1, which has them anyway)."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def power_off() -> None:
    """reboot(2); returns only on failure."""
    os.sync()
    _check(_libc.reboot(ctypes.c_int(RB_POWER_OFF)), "reboot")


def add_entropy(data: bytes) -> None:
    """Credit `data` as full entropy to the kernel's pool and reseed its generator at once."""
    request = struct.pack("ii", len(data) * 8, len(data)) + data
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, _RNDADDENTROPY, request)
        fcntl.ioctl(fd, _RNDRESEEDCRNG)
    finally:
        os.close(fd)


def inotify(path: str, mask: int) -> int:
    """A new non-blocking inotify descriptor that watches one path."""
    fd = _check(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK), "inotify")
    try:
        _check(_libc.inotify_add_watch(fd, path.encode(), mask), path)
    except OSError:
        os.close(fd)
        raise
    return fd
