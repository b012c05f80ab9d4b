"""agent.proto's Spec (a decoded dict with the proto's field names) as the JSON object crun reads.

The proto's names are the JSON names with another capitalisation, so the conversion is one renaming rule and a
short list of exceptions. proto3 has no absent scalars: a zero is left out, which in the runtime spec means
"not set" for every optional field; required ones are filled in here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shim import errors
from shim.oci import id_maps, mapped_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EXCEPTIONS = {
    "Version": "ociVersion",
    "UID": "uid",
    "GID": "gid",
    "OOMScoreAdj": "oomScoreAdj",
    "UIDMappings": "uidMappings",
    "GIDMappings": "gidMappings",
    "CPU": "cpu",
    "Pagesize": "pageSize",
    "errnoret": "errnoRet",
}
# Their keys are data, not field names.
_MAPS = frozenset({"Annotations", "Sysctl"})

# runtime-rs sends the names of its library's enumerations, which are not all the spec's.
_NAMESPACE_TYPES = {"mnt": "mount", "net": "network"}

# Dropped from a process: the guest's kernel has no policy loaded for either.
_LABELS = ("apparmorProfile", "selinuxLabel")


def _json_name(field: str) -> str:
    return _EXCEPTIONS.get(field) or field[:1].lower() + field[1:]


def _convert(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            _json_name(key): dict(item) if key in _MAPS else _convert(item) for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_convert(item) for item in value]
    return value


def process_from_proto(message: Mapping[str, Any]) -> dict[str, Any]:
    """`grpc.Process` as the runtime spec's process."""
    process: dict[str, Any] = _convert(message)
    process.setdefault("cwd", "/")
    process.setdefault("terminal", False)
    process.setdefault("args", [])
    user = process.setdefault("user", {})
    user.setdefault("uid", 0)
    user.setdefault("gid", 0)
    for rlimit in process.get("rlimits", []):
        rlimit.setdefault("hard", 0)
        rlimit.setdefault("soft", 0)
    for label in _LABELS:
        process.pop(label, None)
    if sets := process.get("capabilities"):
        process["capabilities"] = {
            kind: [_capability(name) for name in names] for kind, names in sets.items()
        }
    return process


def _capability(name: str) -> str:
    """CAP_KILL; runtime-rs says KILL."""
    return name if name.upper().startswith("CAP_") else f"CAP_{name}"


def spec_from_proto(message: Mapping[str, Any]) -> dict[str, Any]:
    """`grpc.Spec` as config.json's object, with a process, a root and a linux section in any case."""
    parts = {key: value for key, value in message.items() if key not in ("Process", "Solaris", "Windows")}
    spec: dict[str, Any] = _convert(parts)
    spec["process"] = process_from_proto(message.get("Process", {}))
    # agent.proto has no field newer than this, and crun refuses a version it does not know.
    spec["ociVersion"] = "1.0.2"
    spec.setdefault("root", {})
    spec.setdefault("mounts", [])
    linux = spec.setdefault("linux", {})
    linux.pop("mountLabel", None)
    linux.pop("intelRdt", None)
    if "Resources" in message.get("Linux", {}):
        linux["resources"] = resources_from_proto(message["Linux"]["Resources"])
    for call in linux.get("seccomp", {}).get("syscalls", []):
        for argument in call.get("args", []):
            argument.setdefault("index", 0)
            argument.setdefault("value", 0)
    return spec


def resources_from_proto(message: Mapping[str, Any]) -> dict[str, Any]:
    """`grpc.LinuxResources` as the runtime spec's resources."""
    resources: dict[str, Any] = _convert(message)
    for rule in resources.get("devices", []):
        rule.setdefault("allow", False)
        if not rule.get("major") and not rule.get("minor"):
            # 0:0 is no device; the proto's zero stands for the spec's absent "any".
            rule.pop("major", None)
            rule.pop("minor", None)
    cpu = resources.get("cpu", {})
    if cpu.get("quota", 0) < 0:
        # Without one crun lifts no limit; it is the kernel's default, and runc's.
        cpu.setdefault("period", 100_000)
    if not resources.get("pids"):
        resources.pop("pids", None)  # an object without its one member, which crun refuses
    return resources


def place_namespaces(spec: dict[str, Any], paths: Mapping[str, str]) -> None:
    """Fit the namespaces to the guest: its network is the pod's, so a container gets none of its own; host
    paths mean nothing here; `paths` (type -> guest path) are joined where the container wants the type. Processes
    and cgroup are its own in any case: a host with cgroup v1 asks for no namespace of these, but the guest has v2, in
    which programs look for their limits at the root."""
    kept = []
    for namespace in spec["linux"].get("namespaces", []):
        kind = namespace.get("type", "")
        kind = _NAMESPACE_TYPES.get(kind, kind)
        if kind in ("network", "time", ""):
            continue
        kept.append({"type": kind, "path": paths[kind]} if kind in paths else {"type": kind})
    for kind in ("pid", "cgroup"):
        if not any(namespace["type"] == kind for namespace in kept):
            kept.append({"type": kind, "path": paths[kind]} if kind in paths else {"type": kind})
    spec["linux"]["namespaces"] = kept
    if any(namespace["type"] == "user" for namespace in kept):
        _share_sysfs(spec)


def _share_sysfs(spec: dict[str, Any]) -> None:
    """sysfs belongs to the network, so in a user namespace it cannot be mounted, as the network is the guest's.
    crun then takes the guest's, where a read-only one is wanted."""
    for mount in spec["mounts"]:
        if mount.get("type") == "sysfs":
            mount["options"] = [option for option in mount.get("options", []) if option != "rw"] + ["ro"]


def shared_ids(spec: Mapping[str, Any], own: Sequence[str]) -> tuple[str, str] | None:
    """The ids (`oci.id_maps`) of a user namespace that it shares; None if it wants none, or one for itself."""
    kinds = {namespace.get("type") for namespace in spec["linux"].get("namespaces", [])}
    return id_maps(spec["linux"]) if "user" in kinds.difference(own) else None


def outer_user(process: Mapping[str, Any], linux: Mapping[str, Any]) -> tuple[int, int]:
    """A process's uid and gid as they are outside of its container's user namespace; 0 and 0 if it has none.
    InvalidArgument names one that is nobody's there, of which crun would only say that setgroups fails."""
    if (ids := id_maps(linux)) is None:
        return 0, 0
    user = process["user"]
    wanted = [("uid", user["uid"], ids[0])]
    wanted += [("gid", gid, ids[1]) for gid in (user["gid"], *user.get("additionalGids", []))]
    outer = []
    for kind, number, ranges in wanted:
        if (mapped := mapped_id(number, ranges)) is None:
            raise errors.InvalidArgument(
                f"process.user: {kind} {number} is not among {kind}Mappings {ranges}"
            )
        outer.append(mapped)
    return outer[0], outer[1]


def inherit_process(process: dict[str, Any], container: Mapping[str, Any]) -> None:
    """Fill what an exec leaves out from the container's process, as the agent of Kata does."""
    if not process.get("capabilities") and "capabilities" in container:
        process["capabilities"] = container["capabilities"]


def program_error(args: Sequence[str], reason: str) -> str:
    """runc's words for a program that cannot be executed; people and tools look for them."""
    return f'unable to start container process: exec: "{args[0] if args else ""}": {reason}'
