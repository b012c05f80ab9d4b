"""mount(2) with the fstab-style options containerd gives.

Source: mount(2), mount_setattr(2), umount2(2); containerd core/mount/mount_linux.go for the option words;
constants from Linux include/uapi/linux/mount.h.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from shim.errors import Internal, InvalidArgument, NotFound, PermissionDenied, ShimError
from shim.rootfs.api import Mount
from shim.rootfs.idmap import user_namespace
from shim.value import Value

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
MS_SYNCHRONOUS, MS_DIRSYNC, MS_NOATIME, MS_NODIRATIME = 0x10, 0x80, 0x400, 0x800
MS_BIND, MS_REC, MS_SILENT = 0x1000, 0x4000, 0x8000
MS_PRIVATE, MS_SHARED = 0x40000, 0x100000
MS_RELATIME, MS_STRICTATIME, MS_LAZYTIME = 0x200000, 0x1000000, 0x2000000
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8

_FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "sync": MS_SYNCHRONOUS,
    "dirsync": MS_DIRSYNC,
    "noatime": MS_NOATIME,
    "nodiratime": MS_NODIRATIME,
    "relatime": MS_RELATIME,
    "strictatime": MS_STRICTATIME,
    "lazytime": MS_LAZYTIME,
    "silent": MS_SILENT,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
}
# Words that take a flag back.
_CLEARED = {
    "rw": MS_RDONLY,
    "suid": MS_NOSUID,
    "dev": MS_NODEV,
    "exec": MS_NOEXEC,
    "async": MS_SYNCHRONOUS,
    "atime": MS_NOATIME,
    "diratime": MS_NODIRATIME,
    "norelatime": MS_RELATIME,
    "nostrictatime": MS_STRICTATIME,
    "nolazytime": MS_LAZYTIME,
    "loud": MS_SILENT,
    "defaults": 0,
}
# Of a bind: whether it goes on taking what is mounted below its source. (What is mounted in the share stays there.)
_FOLLOWING = frozenset(("slave", "rslave", "shared", "rshared"))
_PROPAGATIONS = _FOLLOWING | {"private", "rprivate"}
# There is no loop device to be had here, and nothing to remount.
_REFUSED = frozenset(("loop", "remount", "unbindable", "runbindable"))

# mount_setattr: attributes a bind mount can have of its own, by the mount flag.
_ATTRIBUTES = {MS_RDONLY: 0x1, MS_NOSUID: 0x2, MS_NODEV: 0x4, MS_NOEXEC: 0x8, MS_NODIRATIME: 0x80}
_ATTR_ATIME_MASK, _ATTR_ATIMES = 0x70, {MS_NOATIME: 0x10, MS_STRICTATIME: 0x20}
# The numbers of these calls are the same on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_ATTR_IDMAP = 0x100000
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _MOVE_MOUNT_F_EMPTY_PATH = 1, 4

_PAGE_SIZE = 4096  # mount(2) takes no more data, its final NUL included

_libc = ctypes.CDLL(None, use_errno=True)
_ERRORS: dict[int, type[ShimError]] = {2: NotFound, 1: PermissionDenied, 13: PermissionDenied}


class Options(Value):
    """Parsed options: mount(2) `flags`, `data` for the file system in the order given, whether a bind is to
    `follow` what is mounted below its source later, and how owners are shown (`user_namespace`), if not as they are."""

    flags: int
    data: tuple[str, ...]
    follow: bool = False
    ids: tuple[str, str] | None = None


def parse_options(options: tuple[str, ...]) -> Options:
    """Sort fstab words into flags and data. Raises InvalidArgument for words that mount(2) cannot do."""
    flags = 0
    data = []
    ids = {}
    bind = "bind" in options or "rbind" in options
    for option in options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option in _CLEARED:
            flags &= ~_CLEARED[option]
        elif option in _PROPAGATIONS and bind:
            pass
        elif option in _REFUSED | _PROPAGATIONS or "\0" in option:
            raise InvalidArgument(f"mount option not supported: {option!r}")
        elif option.startswith(("uidmap=", "gidmap=")):
            ids[option[:6]] = option[7:]
        elif option:
            data.append(option)
    if len(ids) == 1:
        raise InvalidArgument(f"mount option {next(iter(ids))} without its counterpart")
    follow = bind and not _FOLLOWING.isdisjoint(options)
    return Options(flags, tuple(data), follow, (ids["uidmap"], ids["gidmap"]) if ids else None)


def mount(spec: Mount, target: Path, scratch: Path | None = None) -> None:
    """Make one mount. Raises a ShimError that names the mount and the kernel's reason; then nothing is
    mounted at `target` that was not before. An overlay with mapped ids needs an empty directory for a moment."""
    options = parse_options(spec.options)
    flags = options.flags
    if spec.type in ("bind", "rbind"):
        flags |= MS_BIND | (MS_REC if spec.type == "rbind" else 0)
    with ExitStack() as stack:
        ids = None if options.ids is None else stack.enter_context(user_namespace(*options.ids))
        if flags & MS_BIND:
            _bind(spec, target, flags, follow=options.follow, ids=ids)
            return
        if ids is not None and spec.type != "overlay":
            raise InvalidArgument(f"{_named(spec, target)}: mapped ids are for bind mounts and overlays")
        data = stack.enter_context(_layers_by_fd(spec, target, options.data, ids, scratch))
        text = ",".join(data)
        if len(os.fsencode(text)) >= _PAGE_SIZE:
            raise InvalidArgument(f"{_named(spec, target)}: options longer than {_PAGE_SIZE} bytes")
        _call(spec, target, spec.type, flags, text)


def make_shared_root(source: Path, target: Path) -> None:
    """Make a directory appear at `target`, read-only, as a mount of its own with a fresh peer group: what is mounted
    below it appears in the mount namespaces made from ours later, and only there."""
    bind = Mount("bind", str(source))
    _bind(bind, target, MS_RDONLY | MS_NOSUID | MS_NODEV)
    try:
        _call(bind, target, "", MS_SHARED, "")
    except ShimError:
        unmount(target)
        raise


def unmount(target: Path) -> bool:
    """Detach the topmost mount at `target`, busy or not; False when nothing is mounted there."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return True
    number = ctypes.get_errno()
    if number in (22, 2):  # EINVAL: no mount point; ENOENT
        return False
    raise Internal(f"umount {target}: {os.strerror(number)}")


def _bind(spec: Mount, target: Path, flags: int, *, follow: bool = False, ids: int | None = None) -> None:
    """A copy of the mounts at the source, changed before anybody sees it at `target`. `ids`, a user namespace, are
    those of the topmost (as in runc)."""
    recursive = _AT_RECURSIVE if flags & MS_REC else 0
    attributes = sum(value for flag, value in _ATTRIBUTES.items() if flags & flag)
    atime = next((value for flag, value in _ATTR_ATIMES.items() if flags & flag), None)
    cleared = _ATTR_ATIME_MASK if atime is not None else 0
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd
    request = (ctypes.c_uint64 * 4)(attributes | (atime or 0), cleared, 0 if follow else MS_PRIVATE, 0)
    requests = [("mount_setattr", request, _AT_EMPTY_PATH | recursive)]
    if ids is not None:
        mapped = (ctypes.c_uint64 * 4)(_ATTR_IDMAP, 0, 0, ids)
        requests.append(("its file system with mapped ids: mount_setattr", mapped, _AT_EMPTY_PATH))
    what = _named(spec, target)
    tree = _tried(
        what, "open_tree", _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(spec.source),
        _OPEN_TREE_CLONE | os.O_CLOEXEC | recursive,
    )  # fmt: skip
    try:
        for name, request, where in requests:
            _tried(
                what, name, _SYS_MOUNT_SETATTR, tree, b"", where,
                ctypes.byref(request), ctypes.c_size_t(ctypes.sizeof(request)),
            )  # fmt: skip
        _tried(
            what, "move_mount", _SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target),
            _MOVE_MOUNT_F_EMPTY_PATH,
        )  # fmt: skip
    finally:
        os.close(tree)


def _tried(what: str, name: str, number: int, *arguments: Any) -> int:
    """The result of a system call that the C library may not have a function for."""
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise _ERRORS.get(code, Internal)(f"{what}: {name}: {os.strerror(code)}")
    return result


def _call(spec: Mount, target: Path, kind: str, flags: int, data: str) -> None:
    status = _libc.mount(
        ctypes.c_char_p(os.fsencode(spec.source)),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_char_p(os.fsencode(kind) or None),
        ctypes.c_ulong(flags),
        ctypes.c_char_p(os.fsencode(data) or None),
    )
    if status:
        number = ctypes.get_errno()
        raise _ERRORS.get(number, Internal)(f"{_named(spec, target)}: {os.strerror(number)}")


def _named(spec: Mount, target: Path) -> str:
    return f"mount {spec.type} {spec.source} on {target}"


@contextmanager
def _layers_by_fd(
    spec: Mount, target: Path, data: tuple[str, ...], ids: int | None, scratch: Path | None
) -> Iterator[tuple[str, ...]]:
    """The same data with a long `lowerdir` list made short, or many image layers would not fit in a page, and one with
    mapped ids made of mapped mounts.

    Each layer is opened and named by its fd; about 200 fit. (containerd makes the paths relative to a working
    directory instead, which takes a process of its own.) A mapped one is mounted at `scratch` until the overlay has
    taken it: before Linux 6.15 it takes nothing that is mounted nowhere.
    """
    long = sum(len(os.fsencode(word)) + 1 for word in data) >= _PAGE_SIZE
    with ExitStack() as opened:

        def by_fds(word: str) -> str:
            key, _, layers = word.partition("=")
            # A backslash escapes a colon.
            if key != "lowerdir" or not (ids or long) or ("\\" in layers and ids is None):
                return word
            return "lowerdir=" + ":".join(layer and by_fd(layer) for layer in layers.split(":"))

        def by_fd(layer: str) -> str:
            path = layer
            if ids is not None:
                assert scratch is not None
                _bind(Mount("bind", layer), scratch, MS_RDONLY, ids=ids)
                opened.callback(unmount, scratch)
                path = str(scratch)
            try:
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as err:
                raise NotFound(f"{_named(spec, target)}: layer {layer}: {err.strerror}") from err
            opened.callback(os.close, fd)
            return f"/proc/self/fd/{fd}"

        yield tuple(map(by_fds, data))
