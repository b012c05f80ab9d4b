"""`kata-py env`: versions, paths and settings, for a bug report or a script."""

from __future__ import annotations

import os
import platform
from typing import Any

import click

from shim.bootstrap.info import NAME, VERSION
from shim.children import find_program
from shim.cli import host
from shim.cli.table import as_json, echo_json
from shim.config.load import files
from shim.config.model import Config, toml
from shim.hypervisor.qemu import accelerator
from shim.record.place import RUN_DIR
from shim.rootfs import virtiofsd


@click.command("env")
@as_json
def env_command(*, as_json: bool) -> None:
    """Print versions, paths and settings."""
    daemon = host.containerd()
    found = environment(host.settings(daemon), daemon)
    if as_json:
        echo_json(found)
        return
    for section, values in found.items():
        click.echo(f"[{section}]")
        for key, value in values.items():
            click.echo(f"{key:22}{value if isinstance(value, str) else toml(value)}")


def environment(config: Config, daemon: host.Containerd) -> dict[str, dict[str, Any]]:
    """By section; what is not there is null."""
    guest = host.guest_versions(config) or {}
    hypervisor = host.path(lambda: find_program([config.hypervisor]))
    return {
        "kata_py": {
            "version": VERSION,
            "runtime": NAME,
            "python": platform.python_version(),
            "program": str(host.shim_program()),
            "run_dir": RUN_DIR,
            "settings_files": [str(path) for path in files({**daemon.settings, **os.environ})],
        },
        "host": {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "cpus": os.cpu_count(),
            "memory_mib": host.memory_mib(),
            "accelerator": accelerator.choose(config.accelerator),
        },
        "programs": {
            "hypervisor": hypervisor,
            "hypervisor_version": host.version(hypervisor),
            "virtiofsd": host.path(lambda: virtiofsd.find(config.virtiofsd)),
            "containerd": daemon.program,
            "containerd_version": daemon.version,
            "containerd_pid": daemon.pid,
        },
        "guest": {
            "kernel": str(config.kernel),
            "initrd": str(config.initrd),
            "kernel_release": guest.get("kernel_release"),
            "template_dir": str(config.template_dir),
        },
        "settings": config.values(),
    }
