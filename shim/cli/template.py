"""`kata-py template`: saved VMs from which sandboxes start."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import click

from shim import vm
from shim.config.load import load
from shim.config.model import Config
from shim.errors import NotFound, Unavailable
from shim.hypervisor.qemu.driver import QemuHypervisor
from shim.log import Log
from shim.template.create import create as create_template
from shim.template.store import Store, Template

_LOG_FD = 2
# In the background it gives way to everybody, so it may take long.
_PATIENCE = 5


@click.group("template")
def template_command() -> None:
    """Saved VMs from which sandboxes start instead of booting."""


def _store(config: Config) -> Store:
    return Store(config.template_dir, config.template_limit_mib)


@template_command.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON array instead of a table.")
def ls(as_json: bool) -> None:
    """List templates, the one used last first."""
    templates = _store(load()).all()
    if as_json:
        click.echo(json.dumps([_as_json(item) for item in templates], indent=1))
        return
    click.echo(f"{'KEY':18}{'MEMORY':>10}{'CPUS':>6}{'ON DISK':>10}  {'CREATED':18}USED")
    for item in templates:
        size = f"{item.allocated / (1 << 20):.0f} MiB"
        sizes = f"{f'{item.memory_mib} MiB':>10}{item.vcpus:>6}{size:>10}"
        click.echo(f"{item.key:18}{sizes}  {_when(item.created):18}{_when(item.used)}")


@template_command.command()
@click.option("--json", "as_json", is_flag=True, help="Print the template as JSON.")
@click.option("--background", is_flag=True, help="Give up when another one is being created.")
def create(as_json: bool, background: bool) -> None:
    """Create the template of the VM that the settings describe, unless it is there."""
    config = load()
    store, log = _store(config), Log(_LOG_FD, "error" if background else config.log_level)
    hypervisor = QemuHypervisor(log, config.hypervisor)
    spec = vm.spec(config, f"template-{os.getpid()}", Path("/nonexistent"))
    timeout_s = config.boot_s * (_PATIENCE if background else 1)
    work = create_template(hypervisor, spec, store, log, wait=not background, timeout_s=timeout_s)
    try:
        key = asyncio.run(work)
    except Unavailable:
        if background:
            return
        raise
    made = next(item for item in store.all() if item.key == key)
    click.echo(json.dumps(_as_json(made), indent=1) if as_json else key)


@template_command.command()
@click.argument("keys", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Remove all templates.")
def rm(keys: tuple[str, ...], everything: bool) -> None:
    """Remove templates, by their keys or the beginnings of them. Running sandboxes go on."""
    store = _store(load())
    known = [item.key for item in store.all()]
    if not keys and not everything:
        raise click.UsageError("which one? Say its key, or --all")
    for word in known if everything else keys:
        found = [key for key in known if word and key.startswith(word)]
        if len(found) != 1:
            raise NotFound(f"template {word!r}: {'several keys begin so' if found else 'there is none'}")
        store.remove(found[0])
        click.echo(found[0])


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _as_json(item: Template) -> dict[str, object]:
    return {
        "key": item.key,
        "directory": str(item.directory),
        "memory_mib": item.memory_mib,
        "vcpus": item.vcpus,
        "allocated_bytes": item.allocated,
        "created": item.created,
        "used": item.used,
        "files": [file.path for file in item.inputs.files],
    }
