"""The protobuf messages of the binary contract: what `start` finds on stdin, what `delete` and `-info` print.

`schema` has these few alone, since a table of all messages would cost as much to import as the rest of `start`.
"""

from __future__ import annotations

from shim import wire
from shim.bootstrap.schema import MESSAGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# containerd's typeurl for a structure of the runtime-spec
_FEATURES = "types.containerd.io/opencontainers/runtime-spec/1/features/Features"


def decode(message: str, data: bytes) -> dict[str, Any]:
    """A message by its full name; InvalidArgument if it is malformed."""
    return wire.decode(MESSAGES, message, data)


def delete_response(pid: int, exit_status: int, exited_at_ns: int) -> bytes:
    """`pid` 0 is "not known"; the time is nanoseconds since the epoch."""
    seconds, nanos = divmod(exited_at_ns, 1_000_000_000)
    fields = {"pid": pid, "exit_status": exit_status, "exited_at": {"seconds": seconds, "nanos": nanos}}
    return wire.encode(MESSAGES, "containerd.task.v2.DeleteResponse", fields)


def runtime_info(name: str, version: str, features: bytes) -> bytes:
    """`features` is the JSON of the runtime-spec's features structure."""
    packed = {"type_url": _FEATURES, "value": features}
    fields = {"name": name, "version": {"version": version}, "features": packed}
    return wire.encode(MESSAGES, "containerd.types.RuntimeInfo", fields)
