"""From the host's spec to the guest's: one function for each concern, none of them does IO.

What is dropped belongs to the host (its network, devices, cgroup numbers, security modules) or is the agent's
business; the kata-agent expects the same (runtime-rs, container.rs). Seccomp stays: crun
applies it in the guest as runc would have on the host."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from shim import oci

# Sources that mean the guest's own tree, not the host's.
_GUEST_TREES = ("/proc", "/sys", "/dev")
SANDBOX_SHM = "/run/kata-containers/sandbox/shm"


def shared_binds(spec: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Host paths that the spec binds into the container and that must be shared, with whether read-only."""
    for mount in oci.objects(spec, "mounts"):
        if _is_shared(mount):
            yield oci.text(mount, "source"), "ro" in oci.texts(mount, "options")


def guest_spec(
    spec: Mapping[str, Any], *, root: str, shared: Mapping[tuple[str, bool], str], bundle: str, kind: str
) -> dict[str, Any]:
    """The spec for the agent; `spec` stays as it is.

    `root` is the rootfs in the guest, `shared` the guest's path for each of `shared_binds`, `kind` kata's
    container type (pod_sandbox, pod_container or single_container)."""
    guest = copy.deepcopy(dict(spec))
    set_root(guest, root)
    set_mounts(guest, shared)
    set_namespaces(guest)
    limit_resources(guest)
    keep_guest_hooks(guest)
    clear_security_labels(guest)
    annotate(guest, bundle, kind)
    return guest


def set_root(guest: dict[str, Any], path: str) -> None:
    guest["root"] = {**oci.section(guest, "root"), "path": path}


def set_mounts(guest: dict[str, Any], shared: Mapping[tuple[str, bool], str]) -> None:
    for mount in oci.objects(guest, "mounts"):
        if _is_shared(mount):
            mount["source"] = shared[oci.text(mount, "source"), "ro" in oci.texts(mount, "options")]
        elif _is_shm(mount):
            mount["source"] = SANDBOX_SHM


def set_namespaces(guest: dict[str, Any]) -> None:
    """No paths: they name the host's namespaces. The VM is the network and time namespace; the agent makes
    the pid namespace, one for each container unless the sandbox shares one (`shares_pidns`)."""
    kept = [
        item for item in oci.objects(guest, "linux", "namespaces") if item.get("type") in _KEPT_NAMESPACES
    ]
    if guest.get("linux"):
        guest["linux"]["namespaces"] = [{"type": item["type"]} for item in kept]


_KEPT_NAMESPACES = {"ipc", "uts", "mount", "user", "cgroup"}


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


def annotate(guest: dict[str, Any], bundle: str, kind: str) -> None:
    ours = {oci.KATA_CONTAINER_TYPE: kind, oci.KATA_BUNDLE_PATH: bundle}
    guest["annotations"] = {**oci.section(guest, "annotations"), **ours}


def guest_process(process: Mapping[str, Any]) -> dict[str, Any]:
    """An exec's process for the agent."""
    guest = copy.deepcopy(dict(process))
    clear_security_labels({"process": guest})
    return guest


def container_kind(spec: Mapping[str, Any]) -> str:
    """Kata's container type by the CRI annotation."""
    found = oci.section(spec, "annotations").get(oci.CONTAINER_TYPE)
    return {"sandbox": oci.POD_SANDBOX, "container": oci.POD_CONTAINER}.get(str(found), oci.SINGLE_CONTAINER)


def _is_shm(mount: Mapping[str, Any]) -> bool:
    return mount.get("destination") == "/dev/shm" and oci.is_bind(mount)


def _is_shared(mount: Mapping[str, Any]) -> bool:
    if not oci.is_bind(mount) or _is_shm(mount):
        return False
    source = oci.text(mount, "source")
    return not any(source == tree or source.startswith(tree + "/") for tree in _GUEST_TREES)
