"""What pid 1 of the VM does before it can serve: file systems, the root, kernel modules.

The image holds no init system: the kernel starts the agent itself, on an initramfs.
"""

from __future__ import annotations

import os

from shim import errors
from shim.guest import syscall

MODULES = "/lib/modules"

_SAFE = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
# (source, target, type, flags, data); devtmpfs first, so that /dev/console is there for errors.
_MOUNTS = (
    ("dev", "/dev", "devtmpfs", syscall.MS_NOSUID, "mode=0755"),
    ("proc", "/proc", "proc", _SAFE, ""),
    ("sysfs", "/sys", "sysfs", _SAFE, ""),
    ("tmpfs", "/run", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=0755"),
    ("tmpfs", "/tmp", "tmpfs", syscall.MS_NOSUID | syscall.MS_NODEV, "mode=1777"),
    ("devpts", "/dev/pts", "devpts", syscall.MS_NOSUID | syscall.MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
    ("shm", "/dev/shm", "tmpfs", _SAFE, "mode=1777"),
    ("mqueue", "/dev/mqueue", "mqueue", _SAFE, ""),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", _SAFE, "nsdelegate"),
)
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("fd/0", "/dev/stdin"),
    ("fd/1", "/dev/stdout"),
    ("fd/2", "/dev/stderr"),
)

# Listening needs the socket family alone, and being reached the device's driver. All others are loaded when
# calls are answered already.
_TO_LISTEN = frozenset(("vsock",))
_TO_BE_REACHED = frozenset(
    (
        "virtio",
        "virtio_ring",
        "virtio_pci_legacy_dev",
        "virtio_pci_modern_dev",
        "virtio_pci",
        "vmw_vsock_virtio_transport_common",
        "vmw_vsock_virtio_transport",
    )
)


class Modules:
    """Paths of the image's kernel modules by what they are for, each list in the order to load it in."""

    def __init__(self, directory: str = MODULES) -> None:
        self.to_listen: list[str] = []
        self.to_be_reached: list[str] = []
        self.others: list[str] = []
        try:
            with open(f"{directory}/order") as file:
                names = file.read().split()
        except FileNotFoundError:
            return
        for name in names:
            key = module_name(name)
            if key in _TO_LISTEN:
                chosen = self.to_listen
            else:
                chosen = self.to_be_reached if key in _TO_BE_REACHED else self.others
            chosen.append(f"{directory}/{name}")

    def find(self, name: str) -> str | None:
        """The path of a module by its name, `-` and `_` alike."""
        for path in self.to_listen + self.to_be_reached + self.others:
            if module_name(path) == module_name(name):
                return path
        return None


def module_name(path: str) -> str:
    """The kernel's name for the module in a file."""
    return os.path.basename(path).removesuffix(".ko").replace("-", "_")


def leave_initramfs() -> None:
    """Make the root a mount that can be pivoted away from, which an initramfs is not (crun would fail with
    EINVAL): bind it onto itself, move that over / and chroot there. Nothing is copied."""
    syscall.mount("/", "/mnt", flags=syscall.MS_BIND | syscall.MS_REC)
    os.chdir("/mnt")
    syscall.mount(".", "/", flags=syscall.MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def mount_filesystems() -> None:
    for source, target, fstype, flags, data in _MOUNTS:
        os.makedirs(target, exist_ok=True)
        syscall.mount(source, target, fstype, flags, data)
    for target, link in _LINKS:
        if not os.path.lexists(link):
            os.symlink(target, link)


def open_standard_streams() -> None:
    """Give fds 0-2 to the console or to nothing if the kernel could not open them for us."""
    while (fd := os.open(_console(), os.O_RDWR | os.O_NOCTTY)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def _console() -> str:
    return "/dev/console" if os.path.exists("/dev/console") else "/dev/null"


def load_by_name(name: str, parameters: str, directory: str = MODULES) -> None:
    """CreateSandbox's kernel_modules: a module of the image, by its name."""
    if not name.replace("-", "_").isidentifier():
        raise errors.InvalidArgument(f"{name!r} is no name of a kernel module")
    path = Modules(directory).find(name)
    if path is not None:
        syscall.load_module(path, parameters)
    elif not os.path.isdir(f"/sys/module/{module_name(name)}"):  # built in
        raise errors.NotFound(f"the guest image has no kernel module {name}")


def load_file_system(name: str, directory: str = MODULES) -> None:
    """What the image has for a file system of disks, and the kernel has not yet; nothing for others. Raises OSError."""
    if not name.isidentifier() or os.path.isdir(f"/sys/module/{name}"):
        return
    try:
        with open(f"{directory}/{name}/order") as file:
            modules = file.read().split()
    except FileNotFoundError:
        return
    import zlib

    for module in modules:
        with open(f"{directory}/{name}/{module}.z", "rb") as compressed:
            syscall.load_module_data(zlib.decompress(compressed.read()), module)


def parse_cmdline(text: str) -> dict[str, str]:
    """The agent's parameters on the kernel command line, `agent.<name>=<value>`; the last one counts."""
    parameters = {}
    for word in text.split():
        key, _, value = word.partition("=")
        if key.startswith("agent."):
            parameters[key.removeprefix("agent.")] = value
    return parameters


def number(parameters: dict[str, str], name: str, default: int) -> int:
    """A non-negative number among the parameters; anything else counts as absent, as in Kata's agent."""
    value = parameters.get(name, "")
    return int(value) if value.isdecimal() else default
