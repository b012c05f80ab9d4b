"""The settings: what there is, what each may be, and what it is without being set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, cast

from shim.errors import InvalidArgument

_KERNEL, _INITRD = Path("/var/lib/kata-py/guest/vmlinux"), Path("/var/lib/kata-py/guest/initrd.cpio")
_TEMPLATES = Path("/var/lib/kata-py/templates")


def _setting(default: Any, allowed: str, check: Callable[[Any], bool], convert: type = object) -> Any:
    """A field with its check; `allowed` completes "want ...". A value is converted after it was checked."""
    return field(default=default, metadata={"allowed": allowed, "check": check, "convert": convert})


def _int(default: int, low: int, high: int) -> Any:
    def check(value: Any) -> bool:
        return type(value) is int and low <= value <= high

    return _setting(default, f"a whole number from {low} to {high}", check)


def _seconds(default: float, low: float, high: float) -> Any:
    def check(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high

    return _setting(default, f"seconds from {low:g} to {high:g}", check, float)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _file(default: Path) -> Any:
    return _setting(default, "an absolute path", lambda v: _text(v) and v.startswith("/"), Path)


def _program(default: str) -> Any:
    def check(value: Any) -> bool:
        return _text(value) and (value.startswith("/") or "/" not in value)

    return _setting(default, "a program's name or absolute path", check)


def _one_of(default: str, *words: str) -> Any:
    return _setting(default, "one of " + ", ".join(words), lambda v: v in words)


def _bool(default: bool) -> Any:
    return _setting(default, "true or false", lambda v: type(v) is bool)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(_text(v) and v and " " not in v for v in value)


@dataclass(frozen=True, slots=True)
class Config:
    """All settings; the file has them as top-level keys of the same names. Times are in seconds."""

    # The VMM and the file server: names are looked up in PATH, and "" finds the distribution's.
    hypervisor: str = _program("qemu-system-x86_64")
    virtiofsd: str = _program("")
    accelerator: Literal["auto", "kvm", "tcg"] = _one_of("auto", "auto", "kvm", "tcg")

    # The guest.
    kernel: Path = _file(_KERNEL)  # noqa: RUF009
    initrd: Path = _file(_INITRD)  # noqa: RUF009
    kernel_params: tuple[str, ...] = _setting((), "a list of words without spaces", _words, tuple)
    memory_mib: int = _int(256, 128, 1 << 20)
    vcpus: int = _int(1, 1, 240)

    # Start from a saved VM where there is one, and make one where there is none. On a tmpfs it starts a little
    # faster, until the next reboot of the host. The limit is for all templates together.
    template: Literal["auto", "off"] = _one_of("auto", "auto", "off")
    template_dir: Path = _file(_TEMPLATES)  # noqa: RUF009
    template_limit_mib: int = _int(2048, 1, 1 << 20)

    # stdio: by fds handed to the vsock device, or by the agent's RPCs.
    use_passfd_io: bool = _bool(True)
    passfd_listener_port: int = _int(1027, 1, 0xFFFF_FFFE)

    # How long a boot and a call to the agent may take; how long output may stand still after its process has
    # ended before the exit is told, and how long it may go on flowing.
    boot_s: float = _seconds(60.0, 1, 600)
    agent_s: float = _seconds(30.0, 0.1, 600)
    drain_grace_s: float = _seconds(2.0, 0, 600)
    drain_limit_s: float = _seconds(30.0, 0, 3600)

    # `-debug` on the command line gives at least debug.
    log_level: Literal["trace", "debug", "info", "warning", "error"] = _one_of(
        "info", "trace", "debug", "info", "warning", "error"
    )

    def updated(self, values: Mapping[str, object], source: str) -> Config:
        """A copy with `values`, as a TOML file has them, in place. `source` names them in the InvalidArgument
        for a key there is not or a value that is not allowed."""
        known = {item.name: item for item in fields(Config)}
        changes: dict[str, object] = {}
        for key, value in values.items():
            if key not in known:
                raise InvalidArgument(f"{source}: unknown setting {key!r}: there are {', '.join(known)}")
            rule = known[key].metadata
            if not rule["check"](value):
                raise InvalidArgument(f"{source}: {key} = {value!r}: want {rule['allowed']}")
            changes[key] = value if rule["convert"] is object else rule["convert"](value)
        return replace(self, **cast("dict[str, Any]", changes))
