"""`kata-py config`: the settings in effect, and how containerd learns of the runtime."""

from __future__ import annotations

import os
import shutil
import subprocess
import tomllib

import click

from shim.bootstrap.info import NAME
from shim.cli import host, sandboxes
from shim.cli.table import WIDTH, as_json, echo_json
from shim.config.annotations import PREFIX
from shim.config.load import DEFAULT_PATH
from shim.config.model import annotation_names, toml
from shim.errors import Unavailable

_VALUE_WIDTH = 44
OPTIONS = "runtimeoptions.v1.Options"


@click.group("config")
def config_command() -> None:
    """Settings: what they are, and how containerd passes them on."""


@config_command.command()
@click.option(
    "--sandbox", metavar="SANDBOX", help="Those that a sandbox runs with, its annotations included."
)
@sandboxes.namespace_option
@as_json
def show(sandbox: str | None, namespace: str | None, *, as_json: bool) -> None:
    """Print every setting and where it comes from, as a settings file.

    Without --sandbox these are the settings of a sandbox that is started without runtime options and annotations by
    the containerd that runs; KATA_PY_CONFIG in this environment names another file.
    """
    found = _of_sandbox(sandbox, namespace) if sandbox else _of_environment()
    if as_json:
        echo_json({key: {"value": value, "origin": origin} for key, value, origin in found})
        return
    for key, value, origin in found:
        line = f"{key} = {toml(value)}"
        if len(line) < _VALUE_WIDTH and _VALUE_WIDTH + len(origin) + 2 <= WIDTH:
            click.echo(f"{line:{_VALUE_WIDTH}}# {origin}")
        else:
            click.echo(f"# {origin}\n{line}")


def _of_environment() -> list[tuple[str, object, str]]:
    config = host.settings(host.containerd())
    return [(key, value, config.origins.get(key, "default")) for key, value in config.values().items()]


def _of_sandbox(name: str, namespace: str | None) -> list[tuple[str, object, str]]:
    (found,) = sandboxes.look([sandboxes.pick(name, namespace)])
    if found.live is None:
        raise Unavailable(f"sandbox {name}: {found.problem}")
    return [
        (item.key, tomllib.loads(f"v = {item.value}")["v"], item.origin or "default")
        for item in found.live.settings
    ]


@config_command.command()
@click.option(
    "--version", type=click.Choice(["1.6", "1.7", "2"]), help="containerd's; else the one that is installed."
)
@click.option("--config-path", metavar="FILE", help="Settings for this runtime alone.")
def containerd(version: str | None, config_path: str | None) -> None:
    """Print the lines that make containerd's CRI plugin know the runtime.

    They belong into containerd's config.toml; containerd is to be restarted afterwards. `ctr` needs none.
    """
    click.echo(snippet(version or installed_version(), config_path), nl=False)


def snippet(version: str, config_path: str | None = None) -> str:
    """For containerd 1.6, 1.7 or 2."""
    plugin = "io.containerd.cri.v1.runtime" if version == "2" else "io.containerd.grpc.v1.cri"
    section = f"plugins.'{plugin}'.containerd.runtimes.kata-py"
    annotations = ", ".join(
        f'"{PREFIX}{kind}.*"' for kind in sorted({n.partition(".")[0] for n in annotation_names()})
    )
    lines = [
        f"# The file must begin with: version = {3 if version == '2' else 2}",
        f"[{section}]",
        f'  runtime_type = "{NAME}"',
        "  # Annotations of pods that reach the shim; its setting enable_annotations has the last word.",
        f"  pod_annotations = [{annotations}]",
        "  # A privileged container is privileged in its VM: the host's devices are not there.",
        "  privileged_without_host_devices = true",
    ]
    if config_path:
        lines += [
            f"  [{section}.options]",
            f'    TypeUrl = "{OPTIONS}"',
            f"    ConfigPath = {toml(config_path)}",
        ]
    else:
        lines += [f"  # Settings are read from {DEFAULT_PATH}. For another file:"]
        lines += [f"  # [{section}.options]", f'  #   TypeUrl = "{OPTIONS}"', '  #   ConfigPath = "/..."']
    return "\n".join(lines) + "\n"


def installed_version() -> str:
    """Of the containerd in PATH: 1.6, 1.7 or 2; 2 as well where there is none."""
    program = shutil.which("containerd", path=f"{os.environ.get('PATH', '')}:/usr/bin:/usr/local/bin")
    if program is None:
        return "2"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    return next(
        (version for version in ("1.6", "1.7") if f" v{version}." in said or f" {version}." in said), "2"
    )
