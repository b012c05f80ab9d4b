"""The part of the OCI runtime spec that the shim touches, and the annotations it reads and sets.

A spec is the JSON object of a bundle's config.json as a dict. It comes from containerd, but pieces of it come
from users: every access here tolerates a missing or null member and refuses one of a wrong kind."""

from __future__ import annotations

from shim.errors import InvalidArgument

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# What a CRI plugin writes (containerd pkg/cri/annotations).
CONTAINER_TYPE = "io.kubernetes.cri.container-type"
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
# What kata's runtimes tell its agent.
KATA_CONTAINER_TYPE = "io.katacontainers.pkg.oci.container_type"
POD_SANDBOX, POD_CONTAINER, SINGLE_CONTAINER = "pod_sandbox", "pod_container", "single_container"
KATA_BUNDLE_PATH = "io.katacontainers.pkg.oci.bundle_path"
# What puts a container into another's sandbox without CRI (containerd's runc shim defines it).
GROUP = "io.containerd.runc.v2.group"
# Ours to our agent: which of the sandbox's namespaces this container has for itself, with commas between.
OWN_NAMESPACES = "io.kata-py.own_namespaces"
# Ours to our agent: port 0 in a request means no stream, never stdio by RPC. Set where there are ports.
PASSFD = "io.kata-py.passfd"


def parse(data: bytes) -> dict[str, Any]:
    """The spec, or process, in `data`. InvalidArgument if it is not a JSON object."""
    import json

    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidArgument("not a JSON object")
    return value


def section(spec: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """The object at `path`; a missing or null one is empty (and not put into the spec)."""
    value: Any = spec
    for key in path:
        value = value.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise InvalidArgument(f"spec: {'.'.join(path)}: not an object")
    return value  # type: ignore[no-any-return]


def objects(spec: Mapping[str, Any], *path: str) -> list[dict[str, Any]]:
    """The list of objects at `path`; a missing or null one is empty."""
    value = section(spec, *path[:-1]).get(path[-1])
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise InvalidArgument(f"spec: {'.'.join(path)}: not a list of objects")
    return value


def text(value: Mapping[str, Any], key: str) -> str:
    """A string member; "" if it is missing or null."""
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise InvalidArgument(f"spec: {key}: not a string")
    return found


def texts(value: Mapping[str, Any], key: str) -> list[str]:
    """A list of strings; empty if it is missing or null."""
    found = value.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise InvalidArgument(f"spec: {key}: not a list of strings")
    return found


def namespace_path(spec: Mapping[str, Any], kind: str) -> str | None:
    """The path of a namespace to join, "" for a new one, None if the spec has none of this kind."""
    for item in objects(spec, "linux", "namespaces"):
        if item.get("type") == kind:
            return text(item, "path")
    return None


def id_maps(owner: Mapping[str, Any]) -> tuple[str, str] | None:
    """`uidMappings` and `gidMappings` of the linux section or of a mount, each as containerd writes them in a mount's
    options, "<containerID>:<hostID>:<size>,…"; None if there are none."""
    uids, gids = _id_map(owner, "uidMappings"), _id_map(owner, "gidMappings")
    if bool(uids) != bool(gids):
        raise InvalidArgument("spec: uidMappings and gidMappings: one without the other")
    return (uids, gids) if uids else None


def _id_map(owner: Mapping[str, Any], key: str) -> str:
    lines = []
    for item in objects(owner, key):
        numbers = [item.get(name, 0) for name in ("containerID", "hostID", "size")]
        if not all(isinstance(number, int) and 0 <= number < 1 << 32 for number in numbers) or not numbers[2]:
            raise InvalidArgument(f"spec: {key}: {item}: not a range of ids")
        lines.append(":".join(map(str, numbers)))
    return ",".join(lines)


def mapped_id(number: int, ranges: str) -> int | None:
    """What an id becomes by one of `id_maps`; None without a range for it."""
    for line in ranges.split(","):
        first, mapped, size = map(int, line.split(":"))
        if first <= number < first + size:
            return mapped + number - first
    return None


def is_bind(mount: Mapping[str, Any]) -> bool:
    options = texts(mount, "options")
    return text(mount, "type") == "bind" or "bind" in options or "rbind" in options
