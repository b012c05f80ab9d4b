"""The host's cgroups of a sandbox: where its VM and all that serves it is accounted for.

CRI reads what a pod uses from the cgroup that is the parent of its sandbox's, and kubelet limits it there, the pod's
overhead included. So the daemon itself enters the sandbox's cgroup before it starts anything: what it starts, and
what it allocates for the VM's memory, is then in it.

With cgroup v1 there is one for each controller, with v2 one in all.
"""

from __future__ import annotations

import errno
import os
import time

from shim.errors import InvalidArgument

MOUNTS = "/proc/self/mountinfo"
_LOOK_S = 0.002


def paths(cgroups_path: str, mounts: str = MOUNTS) -> list[str]:
    """Directories of the spec's `cgroupsPath`, for cgroupfs ("/parent/name") and systemd ("slice:prefix:name")
    alike; none without a path. InvalidArgument for one that leads elsewhere."""
    if not cgroups_path:
        return []
    if cgroups_path.count(":") == 2:
        cgroups_path = _of_systemd(*cgroups_path.split(":"))
    names = [name for name in cgroups_path.split("/") if name]
    if not names or ".." in names or "." in names or "\0" in cgroups_path:
        raise InvalidArgument(f"cgroupsPath {cgroups_path!r} is not a plain path")
    return ["/".join([root, *names]) for root in _roots(mounts)]


def _of_systemd(slice_: str, prefix: str, name: str) -> str:
    """systemd.slice(5): a-b.slice lies in a.slice. A scope's name is "prefix-name.scope"."""
    parts = slice_.removesuffix(".slice").split("-") if slice_ else []
    slices = ["-".join(parts[: count + 1]) + ".slice" for count in range(len(parts))]
    return "/".join([*slices, name if name.endswith(".slice") else f"{prefix}-{name}.scope"])


def _roots(mounts: str) -> list[str]:
    """Mount points of v1's controllers, or where there are none, of v2."""
    found: dict[str, list[str]] = {"cgroup": [], "cgroup2": []}
    with open(mounts, errors="surrogateescape") as file:
        for line in file:
            # proc(5): the fields before " - " end with the mount's options; the fifth is where it is. The source,
            # between kind and options, may be empty.
            before, _, after = line.partition(" - ")
            kind, _, options = after.split(" ")
            if kind in found and "name=" not in options:
                found[kind].append(before.split()[4])
    return found["cgroup"] or found["cgroup2"]


def make(path: str) -> list[str]:
    """Make a cgroup and its missing parents; those that were made, the outermost first. Raises OSError."""
    if os.path.isdir(path):
        return []
    made = make(os.path.dirname(path))
    os.mkdir(path, 0o755)
    # v1: nobody can enter a cpuset that has no processors and memory.
    for name in ("cpuset.cpus", "cpuset.mems"):
        own, parents = f"{path}/{name}", f"{os.path.dirname(path)}/{name}"
        if os.path.exists(own) and os.path.exists(parents) and not _read(own):
            _write(own, _read(parents))
    return [*made, path]


def enter(path: str) -> None:
    """Move the calling process, all its threads, into a cgroup. Raises OSError."""
    _write(f"{path}/cgroup.procs", str(os.getpid()))


def current(mounts: str = MOUNTS) -> list[str]:
    """The directories of the calling process's cgroups."""
    roots = _roots(mounts)
    found = []
    with open("/proc/self/cgroup") as file:
        for line in file:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            for root in roots:
                if os.path.basename(root) == controllers or (not controllers and len(roots) == 1):
                    found.append(f"{root}{path.rstrip('/')}")
    return found


def remove(path: str, deadline: float) -> None:
    """Remove a cgroup, once the last of its processes is gone (`deadline` on `time.monotonic`). Raises OSError for one
    that is still in use then. None there is fine."""
    while True:
        try:
            os.rmdir(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(_LOOK_S)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
