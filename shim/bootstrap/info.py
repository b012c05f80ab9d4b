"""`-info` and `-v`: who we are. Static, since containerd asks at the first container of a runtime."""

from __future__ import annotations

NAME = "io.containerd.kata-py.v2"
VERSION = "0.1.0"  # as pyproject.toml has it; importlib.metadata would take longer than the rest


def runtime_info() -> bytes:
    """A serialised containerd.types.RuntimeInfo. What containerd sends on stdin does not change it."""
    from shim.bootstrap import messages

    return messages.runtime_info(NAME, VERSION)


def version_text() -> bytes:
    return f"containerd-shim-kata-py {VERSION}\n".encode()
