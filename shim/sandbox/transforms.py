"""From the host's spec to the guest's: one function for each concern, none of them does IO.

What is dropped belongs to the host (its network, devices, cgroup numbers, security modules) or is the agent's
business; the kata-agent expects the same (runtime-rs, container.rs). Seccomp stays: crun
applies it in the guest as runc would have on the host."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from shim import oci
from shim.errors import InvalidArgument


def guest_spec(
    spec: Mapping[str, Any],
    *,
    root: str,
    mounts: Sequence[Mapping[str, Any]],
    devices: Sequence[Mapping[str, Any]],
    bundle: str,
    kind: str,
    own: Sequence[str] = (),
) -> dict[str, Any]:
    """The spec for the agent; `spec` stays as it is.

    `root`, `mounts` and `devices` are those in the guest (`volumes.Volumes`), `kind` kata's container type
    (pod_sandbox, pod_container or single_container), `own` its `own_namespaces`."""
    guest = copy.deepcopy({**spec, "mounts": list(mounts)})
    set_root(guest, root)
    if devices:
        guest["linux"] = {**oci.section(guest, "linux"), "devices": copy.deepcopy(list(devices))}
    set_namespaces(guest)
    limit_resources(guest)
    keep_guest_hooks(guest)
    clear_security_labels(guest)
    annotate(guest, bundle, kind, own)
    return guest


def set_root(guest: dict[str, Any], path: str) -> None:
    guest["root"] = {**oci.section(guest, "root"), "path": path}


def set_namespaces(guest: dict[str, Any]) -> None:
    """No paths: they name the host's namespaces. The VM is the network and time namespace; the agent makes
    the pid namespace, one for each container unless the sandbox shares one (`shares_pidns`)."""
    kept = [
        item for item in oci.objects(guest, "linux", "namespaces") if item.get("type") in _KEPT_NAMESPACES
    ]
    if guest.get("linux"):
        guest["linux"]["namespaces"] = [{"type": item["type"]} for item in kept]


_KEPT_NAMESPACES = {"ipc", "uts", "mount", "user", "cgroup"}


def own_namespaces(spec: Mapping[str, Any], container_id: str) -> list[str]:
    """Which of the namespaces that a sandbox shares a container has for itself: those it asks for without a path,
    unless it is the sandbox's first, whose namespaces are the sandbox's."""
    group = oci.section(spec, "annotations").get(oci.GROUP, container_id)
    if container_kind(spec) != oci.POD_CONTAINER and group == container_id:
        return []
    return [kind for kind in ("ipc", "uts", "user") if oci.namespace_path(spec, kind) == ""]


def check_ids(spec: Mapping[str, Any]) -> None:
    """A user namespace is made in the guest from the spec's mappings. InvalidArgument if it has none, as one that is
    only named by its path, which is the host's; or if nothing is to have the mappings."""
    linux = oci.section(spec, "linux")
    path, mapped = oci.namespace_path(spec, "user"), oci.id_maps(linux) is not None
    if path is not None and not mapped:
        of_host = f" {path}, which is not the guest's," if path else ""
        raise InvalidArgument(
            f"spec: a user namespace{of_host} without linux.uidMappings and linux.gidMappings"
        )
    if path is None and mapped:
        raise InvalidArgument(
            "spec: linux.uidMappings and linux.gidMappings without a user namespace in linux.namespaces"
        )


def shares_pidns(spec: Mapping[str, Any]) -> bool:
    """Whether the container joins another's pid namespace (kubernetes' shareProcessNamespace)."""
    return bool(oci.namespace_path(spec, "pid"))


def limit_resources(guest: dict[str, Any]) -> None:
    if resources := oci.section(guest, "linux", "resources"):
        guest["linux"]["resources"] = guest_resources(resources)


def guest_resources(resources: Mapping[str, Any]) -> dict[str, Any]:
    """Limits without what speaks of the host's devices and processors."""
    guest = {key: value for key, value in resources.items() if key not in _HOST_RESOURCES}
    if cpu := oci.section(guest, "cpu"):
        guest["cpu"] = {key: value for key, value in cpu.items() if key not in ("cpus", "mems")}
    return guest


_HOST_RESOURCES = {"devices", "blockIO", "network", "rdma"}


def keep_guest_hooks(guest: dict[str, Any]) -> None:
    """Only startContainer runs in the container's own root; the programs of the others are the host's."""
    start = oci.objects(guest, "hooks", "startContainer")
    guest.pop("hooks", None)
    if start:
        guest["hooks"] = {"startContainer": start}


def host_hooks(spec: Mapping[str, Any]) -> list[str]:
    """Names of the hooks that `keep_guest_hooks` leaves out."""
    return [
        name for name, entries in oci.section(spec, "hooks").items() if entries and name != "startContainer"
    ]


def clear_security_labels(guest: dict[str, Any]) -> None:
    """The profiles and policies that these name are not loaded in the guest."""
    for key in ("apparmorProfile", "selinuxLabel"):
        oci.section(guest, "process").pop(key, None)
    oci.section(guest, "linux").pop("mountLabel", None)


def annotate(guest: dict[str, Any], bundle: str, kind: str, own: Sequence[str]) -> None:
    ours = {oci.KATA_CONTAINER_TYPE: kind, oci.KATA_BUNDLE_PATH: bundle, oci.OWN_NAMESPACES: ",".join(own)}
    guest["annotations"] = {**oci.section(guest, "annotations"), **ours}


def guest_process(process: Mapping[str, Any], *, terminal: bool) -> dict[str, Any]:
    """An exec's process for the agent. Of the terminal the request for it has the last word (runc's shim)."""
    guest = copy.deepcopy({**process, "terminal": terminal})
    clear_security_labels({"process": guest})
    return guest


def container_kind(spec: Mapping[str, Any]) -> str:
    """Kata's container type by the CRI annotation."""
    found = oci.section(spec, "annotations").get(oci.CONTAINER_TYPE)
    return {"sandbox": oci.POD_SANDBOX, "container": oci.POD_CONTAINER}.get(str(found), oci.SINGLE_CONTAINER)
