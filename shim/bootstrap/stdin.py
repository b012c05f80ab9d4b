"""What containerd sends `start` on stdin.

up to 2.2    nothing, or a serialised google.protobuf.Any of the runtime's options
from 2.3 on  a serialised BootstrapParams
"""

from __future__ import annotations

import os

from shim.errors import InvalidArgument

_LARGEST = 4 << 20
_LARGEST_BODY = 64 << 10  # it becomes a string of the daemon's environment
_OPTIONS = "runtimeoptions.v1.Options"
_LOG_DEBUG = -4


class StartInput:
    """What we use of it; "" is "not given". `unread` says why the input made no sense, if so."""

    __slots__ = ("config_body", "config_path", "debug", "socket_dir", "ttrpc_address", "unread")

    def __init__(self) -> None:
        self.config_body = self.config_path = self.socket_dir = self.ttrpc_address = self.unread = ""
        self.debug = False


def read() -> bytes:
    """All of stdin; nothing if it is a terminal or closed, which means that this is not containerd."""
    data = b""
    try:
        while not os.isatty(0) and (chunk := os.read(0, 1 << 16)):
            data += chunk
            if len(data) > _LARGEST:
                raise InvalidArgument(f"more than {_LARGEST} bytes on stdin")
    except OSError as error:
        raise InvalidArgument(f"cannot read stdin: {error.strerror}") from error
    return data


def parse(data: bytes, instance_id: str, namespace: str) -> StartInput:
    """The meaning of `data`. Options of other runtimes are normal and ignored, and a form that only a later
    containerd knows must not stop containers from starting: that only sets `unread`.

    BootstrapParams is a valid Any too (both begin with two length-delimited fields), and is told from one by the
    id and the namespace of the command line, which it repeats. InvalidArgument for a config_path
    that is not absolute and a config_body that is no text.
    """
    found = StartInput()
    body = b""
    if not data:
        return found
    from shim.bootstrap.messages import decode

    try:
        options = [decode("google.protobuf.Any", data)]
        if options[0] == {"type_url": instance_id, "value": namespace.encode()}:
            params = decode("containerd.runtime.bootstrap.v1.BootstrapParams", data)
            found.socket_dir = params.get("socket_dir", "")
            found.ttrpc_address = params.get("containerd_ttrpc_address", "")
            found.debug = params.get("log_level", 0) <= _LOG_DEBUG
            options = [extension.get("value", {}) for extension in params.get("extensions", ())]
        for option in options:
            # an Any may name its type as "<anything>/<full name>"
            if option.get("type_url", "").rpartition("/")[2] == _OPTIONS:
                ours = decode(_OPTIONS, option.get("value", b""))
                found.config_path, body = ours.get("config_path", ""), ours.get("config_body", b"")
    except InvalidArgument as error:
        found.unread = str(error)
    if found.config_path and not found.config_path.startswith("/"):
        raise InvalidArgument(f"runtime option config_path {found.config_path!r}: want an absolute path")
    try:
        found.config_body = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"runtime option config_body: {error}") from error
    if len(body) > _LARGEST_BODY or "\0" in found.config_body:
        raise InvalidArgument(f"runtime option config_body: want text of at most {_LARGEST_BODY} bytes")
    return found
