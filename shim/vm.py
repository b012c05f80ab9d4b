"""The VM that the settings describe: the same for a sandbox and for its template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shim import oci
from shim.config.annotations import Host
from shim.config.model import Config
from shim.hypervisor.api import VmSpec
from shim.vm_size import Demand, Size, needed, of_pod

# Every CPU that there might be costs the guest memory, so not all of a large host's without being asked.
_MAX_VCPUS = 16
# What an emulated CPU can address is twice as much.
_MAX_MEMORY_MIB = 512 << 10


def host() -> Host:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Host(memory >> 20, os.cpu_count() or 1)


def most(config: Config) -> Size:
    """How large the VM may become."""
    ours = host()
    return Size(
        config.max_memory_mib or min(ours.memory_mib, _MAX_MEMORY_MIB),
        config.max_vcpus or min(ours.cpus, _MAX_VCPUS),
    ).at_least(Size(config.memory_mib, config.vcpus))


def sized(config: Config, spec: Mapping[str, Any]) -> Config:
    """With the size that a sandbox is to have from the start, by the spec of its first container: a pod's has the sums
    of all, another its own limits."""
    pod = of_pod(oci.section(spec, "annotations"))
    own = Demand().updated(oci.section(spec, "linux", "resources"))
    base = Size(config.memory_mib, config.vcpus)
    size = needed(base, [pod if pod != Demand() else own]).at_most(most(config))
    return config.resized(size.memory_mib, size.vcpus)


def spec(config: Config, name: str, run_dir: Path, netns: str | None = None) -> VmSpec:
    """`name`, `run_dir` and `netns` are the sandbox's, of which the machine knows nothing."""
    # Kata's name for it. Without it no agent listens for streams.
    params = [f"agent.passfd_listener_port={config.stream_port}"] if config.stream_port else []
    if config.debug_console:
        params += ["agent.debug_console", f"agent.debug_console_vport={config.debug_console_vport}"]
    limit = most(config)
    return VmSpec(
        name=name,
        run_dir=run_dir,
        kernel=config.kernel,
        initrd=config.initrd,
        kernel_params=(*params, *config.kernel_params),
        memory_mib=config.memory_mib,
        vcpus=config.vcpus,
        accelerator=config.accelerator,
        netns=netns,
        max_memory_mib=limit.memory_mib,
        max_vcpus=limit.vcpus,
    )
