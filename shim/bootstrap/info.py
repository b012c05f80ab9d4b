"""`-info` and `-v`: who we are. Static, since containerd asks at the first container of a runtime."""

from __future__ import annotations

NAME = "io.containerd.kata-py.v2"
VERSION = "0.1.0"  # as pyproject.toml has it; importlib.metadata would take longer than the rest


# What a client may ask for (runtime-spec, features.md). containerd (from 2.2.7 and 2.3.4 on) tells kubelet of recursive
# read-only mounts by "rro" and of user namespaces by "user" and idmap. Without idmap it makes no task that maps ids.
FEATURES = {
    "ociVersionMin": "1.0.0",
    "ociVersionMax": "1.1.0",
    "mountOptions": [
        "bind",
        "rbind",
        "ro",
        "rw",
        "rro",
        "nosuid",
        "suid",
        "nodev",
        "dev",
        "noexec",
        "exec",
        "relatime",
        "noatime",
        "private",
        "rprivate",
        "slave",
        "rslave",
        "shared",
        "rshared",
        "idmap",
    ],
    "linux": {
        "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
        "mountExtensions": {"idmap": {"enabled": True}},
    },
}


def runtime_info() -> bytes:
    """A serialised containerd.types.RuntimeInfo. What containerd sends on stdin does not change it."""
    import json

    from shim.bootstrap import messages

    return messages.runtime_info(NAME, VERSION, json.dumps(FEATURES).encode())


def version_text() -> bytes:
    return f"containerd-shim-kata-py {VERSION}\n".encode()
