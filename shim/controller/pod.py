"""A pod's configuration as the OCI spec that CRI would have written for the pod's pause container.

A sandbox takes its shape (network, size, host name, cgroup) from the spec of its first container. A pod without a pause
container has no such spec, so this makes the part of it that counts. Source: containerd, internal/cri/server/podsandbox
(sandbox_run_linux.go), internal/cri/annotations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from betterproto.lib.google.protobuf import Any as AnyMessage

from shim import oci
from shim.errors import InvalidArgument
from shim.pb.containerd.runtime.sandbox.v1 import CreateSandboxRequest
from shim.pb.runtime.v1 import LinuxContainerResources, NamespaceMode, PodSandboxConfig

_CONFIG = "runtime.v1.PodSandboxConfig"
_RESOURCES = {
    "cpu-period": "cpu_period",
    "cpu-quota": "cpu_quota",
    "cpu-shares": "cpu_shares",
    "memory": "memory_limit_in_bytes",
}


def spec(
    request: CreateSandboxRequest, config: PodSandboxConfig, files: Mapping[str, Path]
) -> dict[str, Any]:
    """The spec for CreateSandbox's request with `config` in it. `files` are the pod's own, by their places in its
    containers."""
    modes = config.linux.security_context.namespace_options
    namespaces = [{"type": "ipc"}, {"type": "uts"}]
    if modes.network != NamespaceMode.NODE:
        namespaces.append({"type": "network", "path": request.netns_path})
    if modes.pid == NamespaceMode.POD:
        namespaces.append({"type": "pid"})
    mounts = {**{place: str(path) for place, path in files.items()}, "/dev/shm": "shm"}
    return {
        "ociVersion": "1.0.2",
        "hostname": config.hostname,
        "annotations": {
            **config.annotations,
            **request.annotations,
            **_sizes(config.linux.resources),
            oci.CONTAINER_TYPE: "sandbox",
            oci.SANDBOX_ID: request.sandbox_id,
        },
        "mounts": [
            {
                "destination": place,
                "type": "bind",
                "source": source,
                "options": ["rbind", "rprivate", "rw"],
            }
            for place, source in mounts.items()
        ],
        "linux": {
            "namespaces": namespaces,
            "sysctl": dict(config.linux.sysctls),
            "cgroupsPath": _cgroups_path(config.linux.cgroup_parent, request.sandbox_id),
        },
    }


def config_of(options: AnyMessage) -> PodSandboxConfig:
    """CRI's options of a sandbox; without them (a client other than CRI) the pod has nothing particular.
    InvalidArgument for anything else."""
    if not options.type_url:
        return PodSandboxConfig()
    if options.type_url.rpartition("/")[2] != _CONFIG:
        raise InvalidArgument(f"sandbox options {options.type_url}: want {_CONFIG}")
    try:
        return PodSandboxConfig().parse(options.value)
    except Exception as error:  # betterproto raises anything
        raise InvalidArgument(f"sandbox options: not a {_CONFIG}: {error!r}") from error


def _sizes(resources: LinuxContainerResources) -> dict[str, str]:
    """The sums over the pod's containers, as the annotations of a pause container have them."""
    values = {name: getattr(resources, field) for name, field in _RESOURCES.items()}
    return {f"io.kubernetes.cri.sandbox-{name}": str(value) for name, value in values.items() if value}


def _cgroups_path(parent: str, sandbox_id: str) -> str:
    """For the systemd driver if the parent is a slice, for cgroupfs else."""
    name = parent.rsplit("/", 1)[-1]
    if name.endswith(".slice"):
        return f"{name}:cri-containerd:{sandbox_id}"
    return f"{parent}/{sandbox_id}" if parent else ""
