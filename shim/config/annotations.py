"""Settings by annotation: Kata's names, and only those that the setting `enable_annotations` lists.

    io.katacontainers.config.hypervisor.default_memory      memory_mib
    io.katacontainers.config.hypervisor.default_vcpus       vcpus
    io.katacontainers.config.hypervisor.default_max_vcpus   max_vcpus
    io.katacontainers.config.hypervisor.kernel_params       words behind those of kernel_params

They are the first container's, whose VM it becomes. Whoever may create a pod can write them, so one that is not
allowed is refused: a pod that runs with something else than it asks for helps nobody. Names are Kata's
(`how-to-set-sandbox-config-kata.md`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shim.config.model import RULES, Config
from shim.errors import InvalidArgument, PermissionDenied
from shim.value import Value

PREFIX = "io.katacontainers.config."
# What the VM and the agent are started with, which a pod cannot know better; what follows "--" is the agent's.
_OURS = ("agent.", "console=", "init=", "panic=", "rdinit=", "--")


class Host(Value):
    """What there is of it: no pod may ask for more."""

    memory_mib: int
    cpus: int


def annotated(config: Config, annotations: Mapping[str, Any], host: Host) -> Config:
    """The settings of a sandbox with these annotations. PermissionDenied for one that is not enabled,
    InvalidArgument for one with a bad value; both name it, and what is allowed."""
    for name in sorted(annotations):
        if name.startswith(PREFIX):
            config = _apply(config, name, annotations[name], host)
    return config


def _apply(config: Config, name: str, text: Any, host: Host) -> Config:
    suffix = name.removeprefix(PREFIX)
    key = next((key for key, rule in RULES.items() if rule.annotation == suffix), "")
    if not key or suffix.rpartition(".")[2] not in config.enable_annotations:
        raise PermissionDenied(f"annotation {name} is not allowed: {_enabled(config)}")
    rule = RULES[key]
    try:
        value = rule.read(text) if isinstance(text, str) else text
        if not rule.check(value):
            raise ValueError
    except ValueError as error:
        raise InvalidArgument(f"annotation {name} = {text!r}: want {rule.allowed}") from error
    _check_limits(name, key, value, host)
    if isinstance(value, list):
        value = [*getattr(config, key), *value]
    return config.updated({key: value}, f"annotation {name}")


def _enabled(config: Config) -> str:
    names = ", ".join(config.enable_annotations)
    return f"enable_annotations has {names}" if names else "enable_annotations is empty"


def _check_limits(name: str, key: str, value: Any, host: Host) -> None:
    cpus = (host.cpus, "CPUs")
    limits = {"memory_mib": (host.memory_mib, "MiB"), "vcpus": cpus, "max_vcpus": cpus}
    if key in limits and value > limits[key][0]:
        limit, unit = limits[key]
        raise InvalidArgument(f"annotation {name} = {value}: the host has {limit} {unit}")
    if key == "kernel_params":
        for word in value:
            if word.lstrip('"').startswith(_OURS):  # the kernel takes quotes away
                raise InvalidArgument(f"annotation {name}: {word!r} is not a pod's to set")
