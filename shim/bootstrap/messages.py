"""The protobuf messages of the binary contract: what `start` finds on stdin, what `delete` and `-info` print.

Tables as `shim.wire` wants them; names and numbers are containerd's (proto/containerd/, of which a test makes
sure). Only these few, since a table of all messages would cost as much to import as all the rest of `start`.
"""

from __future__ import annotations

from shim import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SCHEMA: wire.Schema = {
    "google.protobuf.Any": {1: ("type_url", "string"), 2: ("value", "bytes")},
    "google.protobuf.Timestamp": {1: ("seconds", "int64"), 2: ("nanos", "int32")},
    "containerd.runtime.bootstrap.v1.BootstrapParams": {
        1: ("instance_id", "string"),
        2: ("namespace", "string"),
        3: ("log_level", "enum"),
        4: ("containerd_version", "string"),
        5: ("containerd_ttrpc_address", "string"),
        6: ("containerd_grpc_address", "string"),
        7: ("containerd_binary", "string"),
        8: ("extensions", "containerd.runtime.bootstrap.v1.Extension", "repeated"),
        9: ("socket_dir", "string", "optional"),
    },
    "containerd.runtime.bootstrap.v1.Extension": {1: ("value", "google.protobuf.Any")},
    "runtimeoptions.v1.Options": {
        1: ("type_url", "string"),
        2: ("config_path", "string"),
        3: ("config_body", "bytes"),
    },
    "containerd.task.v2.DeleteResponse": {
        1: ("pid", "uint32"),
        2: ("exit_status", "uint32"),
        3: ("exited_at", "google.protobuf.Timestamp"),
    },
    "containerd.types.RuntimeInfo": {
        1: ("name", "string"),
        2: ("version", "containerd.types.RuntimeVersion"),
    },
    "containerd.types.RuntimeVersion": {1: ("version", "string"), 2: ("revision", "string")},
}


def decode(message: str, data: bytes) -> dict[str, Any]:
    """A message by its full name; InvalidArgument if it is malformed."""
    return wire.decode(SCHEMA, message, data)


def delete_response(pid: int, exit_status: int, exited_at_ns: int) -> bytes:
    """`pid` 0 is "not known"; the time is nanoseconds since the epoch."""
    seconds, nanos = divmod(exited_at_ns, 1_000_000_000)
    fields = {"pid": pid, "exit_status": exit_status, "exited_at": {"seconds": seconds, "nanos": nanos}}
    return wire.encode(SCHEMA, "containerd.task.v2.DeleteResponse", fields)


def runtime_info(name: str, version: str) -> bytes:
    fields = {"name": name, "version": {"version": version}}
    return wire.encode(SCHEMA, "containerd.types.RuntimeInfo", fields)
