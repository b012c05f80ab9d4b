"""The settings: what there is, what each may be, what it is without being set, and where it was set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

from shim.config import rules
from shim.config.rules import Rule
from shim.errors import InvalidArgument

_KERNEL, _INITRD = Path("/var/lib/kata-py/guest/vmlinux"), Path("/var/lib/kata-py/guest/initrd.cpio")
_TEMPLATES = Path("/var/lib/kata-py/templates")


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; the file has them as top-level keys of the same names. Times are in seconds."""

    # The VMM and the file server: names are looked up in PATH, and "" finds the distribution's.
    hypervisor: str = rules.program("qemu-system-x86_64")
    virtiofsd: str = rules.program("")
    accelerator: Literal["auto", "kvm", "tcg"] = rules.one_of("auto", "auto", "kvm", "tcg")

    # The guest.
    kernel: Path = rules.path(_KERNEL)  # noqa: RUF009
    initrd: Path = rules.path(_INITRD)  # noqa: RUF009
    kernel_params: tuple[str, ...] = rules.words(annotation="hypervisor.kernel_params")
    memory_mib: int = rules.whole(256, 128, 1 << 20, annotation="hypervisor.default_memory")
    vcpus: int = rules.whole(1, 1, 240, annotation="hypervisor.default_vcpus")

    # How far it may grow for its containers' limits; 0 is as much as the host has, but no more than 16 CPUs, of which
    # each that there might be costs the guest memory.
    max_memory_mib: int = rules.whole(0, 0, 1 << 20)
    max_vcpus: int = rules.whole(0, 0, 240, annotation="hypervisor.default_max_vcpus")

    # What a pod's annotations may set: the last part of io.katacontainers.config.hypervisor.<...>.
    enable_annotations: tuple[str, ...] = rules.some_of(
        ("default_memory", "default_vcpus"),
        lambda: [name.rpartition(".")[2] for name in annotation_names()],
        "a list of some of default_memory, default_vcpus, default_max_vcpus, kernel_params",
    )

    # Start from a saved VM where there is one, and make one where there is none. On a tmpfs it starts a little
    # faster, until the next reboot of the host. The limit is for all templates together.
    template: Literal["auto", "off"] = rules.one_of("auto", "auto", "off")
    template_dir: Path = rules.path(_TEMPLATES)  # noqa: RUF009
    template_limit_mib: int = rules.whole(2048, 1, 1 << 20)

    # stdio: by fds handed to the vsock device, or by the agent's RPCs.
    use_passfd_io: bool = rules.boolean(True)
    passfd_listener_port: int = rules.whole(1027, 1, 0xFFFF_FFFE)

    # A root shell in the guest, for `kata-py exec`. Guests with and without it are made from different templates.
    debug_console: bool = rules.boolean(False)
    debug_console_vport: int = rules.whole(1026, 1, 0xFFFF_FFFE)

    # How long a boot and a call to the agent may take; how long output may stand still after its process has
    # ended before the exit is told, and how long it may go on flowing.
    boot_s: float = rules.seconds(60.0, 1, 600)
    agent_s: float = rules.seconds(30.0, 0.1, 600)
    drain_grace_s: float = rules.seconds(2.0, 0, 600)
    drain_limit_s: float = rules.seconds(30.0, 0, 3600)

    # `-debug` on the command line gives at least debug.
    log_level: Literal["trace", "debug", "info", "warning", "error"] = rules.one_of(
        "info", "trace", "debug", "info", "warning", "error"
    )

    # Where each setting that was set comes from: a file, an annotation. Not a setting.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def stream_port(self) -> int:
        """The guest's vsock port for streams; 0 when none are to be passed."""
        return self.passfd_listener_port if self.use_passfd_io else 0

    def updated(self, values: Mapping[str, object], source: str) -> Config:
        """A copy with `values`, as a TOML file has them, in place. `source` names them in the InvalidArgument
        for a key there is not or a value that is not allowed."""
        changes: dict[str, object] = {}
        for key, value in values.items():
            if key not in RULES:
                raise InvalidArgument(f"{source}: unknown setting {key!r}: there are {', '.join(RULES)}")
            rule = RULES[key]
            if not rule.check(value):
                raise InvalidArgument(f"{source}: {key} = {value!r}: want {rule.allowed}")
            changes[key] = rule.convert(value)
        origins = {**self.origins, **dict.fromkeys(changes, source)}
        return replace(self, **cast("dict[str, Any]", changes), origins=origins)

    def resized(self, memory_mib: int, vcpus: int) -> Config:
        """For a VM of another size than the settings'."""
        return replace(self, memory_mib=memory_mib, vcpus=vcpus)

    def values(self) -> dict[str, Any]:
        """Every setting as TOML and JSON have it."""
        return {key: _plain(getattr(self, key)) for key in RULES}

    def to_toml(self) -> str:
        """A settings file that says all of this."""
        return "".join(f"{key} = {toml(value)}\n" for key, value in self.values().items())


# By the names of the settings.
RULES: Mapping[str, Rule] = {
    item.name: item.metadata["rule"] for item in fields(Config) if "rule" in item.metadata
}


def annotation_names() -> Sequence[str]:
    """What follows io.katacontainers.config. in the names of the annotations that can set something."""
    return [rule.annotation for rule in RULES.values() if rule.annotation]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def toml(value: object) -> str:
    """A value of a setting in TOML. JSON's strings, numbers, booleans and lists of them are TOML's too."""
    return json.dumps(value, ensure_ascii=False)
