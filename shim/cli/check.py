"""`kata-py check`: can this host run containers in VMs? Each finding comes with what mends it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import click

from shim import vm
from shim.bootstrap.info import NAME
from shim.children import find_program
from shim.cli import host
from shim.cli.gc import leftovers
from shim.cli.host import Containerd
from shim.cli.table import WIDTH, as_json, echo_json
from shim.config.model import Config
from shim.errors import ShimError
from shim.hypervisor.qemu import accelerator
from shim.hypervisor.qemu.driver import QemuHypervisor
from shim.log import Log
from shim.rootfs import virtiofsd
from shim.template.store import Store, inputs
from shim.value import Value

_OLDEST_QEMU, _OLDEST_CONTAINERD = (7, 2), (1, 6)
_QEMU_PACKAGES = "apt-get install qemu-system-x86 qemu-system-common"

_PACKAGES = {"util-linux": ("setpriv", "nsenter", "unshare"), "iproute2": ("ip", "tc")}
_TUN = Path("/dev/net/tun")


class Finding(Value):
    """`ok`: fine. `note`: works, could be better. `bad`: containers will not start. `mend` is a command, or ""."""

    what: str
    state: Literal["ok", "note", "bad"]
    text: str
    mend: str = ""


@click.command("check")
@as_json
def check_command(*, as_json: bool) -> int:
    """Check whether this host can run containers in VMs, with the settings of the containerd that runs.

    The exit status is 1 if anything is found that keeps containers from starting.
    """
    daemon = host.containerd()
    findings = list(check(host.settings(daemon), daemon))
    if as_json:
        echo_json([vars(item) for item in findings])
    else:
        for item in findings:
            head = f"{item.state:5} {item.what:14}"
            click.echo(click.wrap_text(item.text, WIDTH, head, " " * len(head)))
            if item.mend:
                click.echo(f"{'':{len(head)}}{item.mend}")
    return int(any(item.state == "bad" for item in findings))


def check(config: Config, daemon: Containerd) -> Iterator[Finding]:
    yield _accelerator(config)
    yield _hypervisor(config)
    yield _program("virtiofsd", lambda: virtiofsd.find(config.virtiofsd), _QEMU_PACKAGES)
    for package, programs in _PACKAGES.items():
        yield _program(
            package,
            lambda programs=programs: ", ".join(find_program([name]) for name in programs),  # type: ignore[misc]
            f"apt-get install {package}",
        )
    yield _network()
    yield from _guest(config)
    yield _template(config)
    yield _containerd(daemon)
    yield _shim(daemon)
    yield _runtime(daemon)
    yield _leftovers(config)


def _accelerator(config: Config) -> Finding:
    possible = accelerator.choose("auto")
    if config.accelerator == "kvm" and possible != "kvm":
        where = config.origins.get("accelerator", "default")
        return Finding(
            "accelerator", "bad", "accelerator = kvm, which this host has not", f"set it to auto in {where}"
        )
    if accelerator.choose(config.accelerator) == "kvm":
        return Finding("accelerator", "ok", "KVM")
    if possible == "kvm":
        return Finding("accelerator", "note", "emulation by setting, though there is KVM")
    return Finding(
        "accelerator",
        "note",
        "emulation (TCG): works, but CPU-bound work is slow",
        "modprobe kvm_intel || modprobe kvm_amd",
    )


def _hypervisor(config: Config) -> Finding:
    found = _program("QEMU", lambda: find_program([config.hypervisor]), _QEMU_PACKAGES)
    if found.state != "ok":
        return found
    version = host.version(found.text)
    if host.numbers(version) < _OLDEST_QEMU:
        return Finding(
            "QEMU",
            "bad",
            f"{found.text} is {version or 'of unknown version'}: want 7.2 or later",
            _QEMU_PACKAGES,
        )
    return Finding("QEMU", "ok", f"{version} ({found.text})")


def _program(what: str, find: Callable[[], str], mend: str) -> Finding:
    try:
        return Finding(what, "ok", find())
    except ShimError as error:
        return Finding(what, "bad", str(error), mend)


def _network() -> Finding:
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Finding("network", "bad", f"no network for pods: {_TUN}: {error.strerror}", "modprobe tun")
    return Finding("network", "ok", str(_TUN))


def _guest(config: Config) -> Iterator[Finding]:
    build = f"hack/guest/build --out {config.initrd.parent}"
    files = {"kernel": config.kernel, "image": config.initrd}
    missing = {what: path for what, path in files.items() if not path.is_file()}
    for what, path in missing.items():
        yield Finding(what, "bad", f"{path}: no such file", build)
    if missing:
        return
    versions = host.guest_versions(config)
    if versions is None:
        text = f"{config.initrd.parent} has no versions.json: cannot tell whether they match"
        yield Finding("kernel, image", "note", text)
        return
    try:
        wrong = [path for path in files.values() if versions["outputs"].get(path.name) != _sha256(path)]
        release = versions["kernel_release"]
    except (KeyError, TypeError, AttributeError):
        yield Finding("kernel, image", "bad", f"{config.initrd.parent}/versions.json makes no sense", build)
        return
    if wrong:
        text = f"{wrong[0]} is not what was built with the other one"
        yield Finding("kernel, image", "bad", text, f"rm {config.initrd.parent}/versions.json; {build}")
    else:
        yield Finding("kernel, image", "ok", f"match: {release} in {config.initrd.parent}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _template(config: Config) -> Finding:
    if config.template == "off":
        return Finding("template", "note", "off by setting: every VM boots")
    hypervisor = QemuHypervisor(Log(None), config.hypervisor)
    try:
        spec = vm.spec(config, "check", Path("/nonexistent"))
        key = inputs(hypervisor.fingerprint(spec)).key
        store = Store(config.template_dir, config.template_limit_mib)
        found, rejected = store.find(key), store.rejected(key)
    except (ShimError, OSError) as error:
        return Finding("template", "note", f"cannot be used: {error}")
    if found is not None:
        return Finding("template", "ok", f"{key} in {config.template_dir}")
    if rejected:
        return Finding("template", "note", f"{key}: {rejected}", "kata-py template create")
    return Finding(
        "template", "note", "none yet: the first VM boots, and makes it", "kata-py template create"
    )


def _containerd(daemon: Containerd) -> Finding:
    if daemon.program is None:
        return Finding("containerd", "bad", "not found in PATH", "apt-get install containerd")
    text = f"{daemon.version or 'of unknown version'} ({daemon.program})"
    if daemon.version and host.numbers(daemon.version) < _OLDEST_CONTAINERD:
        return Finding("containerd", "bad", f"{text}: want 1.6 or later", "apt-get install containerd")
    if daemon.pid is None:
        return Finding("containerd", "note", f"{text} does not run", "systemctl start containerd")
    return Finding("containerd", "ok", f"{text}, pid {daemon.pid}")


def _shim(daemon: Containerd) -> Finding:
    found = daemon.shim()
    if found is not None:
        return Finding("shim", "ok", found)
    return Finding(
        "shim",
        "bad",
        f"containerd does not find {host.SHIM}",
        f"ln -s {host.shim_program()} /usr/local/bin/",
    )


def _runtime(daemon: Containerd) -> Finding:
    """For Kubernetes; `ctr` names the runtime itself."""
    runtimes = daemon.runtimes()
    if runtimes is None:
        return Finding("CRI runtime", "note", "containerd's configuration cannot be had")
    names = [name for name, runtime in runtimes.items() if runtime.get("runtime_type") == NAME]
    if names:
        return Finding("CRI runtime", "ok", f"{', '.join(names)} in containerd's configuration")
    return Finding(
        "CRI runtime",
        "note",
        "none in containerd's configuration: ctr works, Kubernetes does not",
        "kata-py config containerd >>/etc/containerd/config.toml; systemctl restart containerd",
    )


def _leftovers(config: Config) -> Finding:
    try:
        found = leftovers(config)
    except (ShimError, OSError) as error:
        return Finding("leftovers", "note", f"cannot be looked for: {error}")
    if not found:
        return Finding("leftovers", "ok", "none of dead shims")
    return Finding("leftovers", "note", ", ".join(item.owner for item in found), "kata-py gc --remove")
