"""The VM that the settings describe: the same for a sandbox and for its template."""

from __future__ import annotations

from pathlib import Path

from shim.config.model import Config
from shim.hypervisor.api import VmSpec


def spec(config: Config, name: str, run_dir: Path, netns: str | None = None) -> VmSpec:
    """`name`, `run_dir` and `netns` are the sandbox's, of which the machine knows nothing."""
    # Kata's name for it. Without it no agent listens for streams.
    params = [f"agent.passfd_listener_port={config.stream_port}"] if config.stream_port else []
    if config.debug_console:
        params += ["agent.debug_console", f"agent.debug_console_vport={config.debug_console_vport}"]
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
    )
