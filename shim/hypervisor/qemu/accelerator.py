"""Which accelerator a VM gets, and what of the host its guest sees through it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from shim.hypervisor.api import Accelerator


def choose(
    wanted: Accelerator, *, modules: Path = Path("/sys/module"), device: Path = Path("/dev/kvm")
) -> Literal["kvm", "tcg"]:
    """`auto` is KVM where the CPU's own virtualisation drives it and the device opens, else TCG.

    A `/dev/kvm` that opens proves nothing by itself: there are hosts without kvm_intel or kvm_amd where
    something else answers it and ordinary guests hang. The setting overrides the choice.
    """
    if wanted != "auto":
        return wanted
    if not any((modules / name).is_dir() for name in ("kvm_intel", "kvm_amd")):
        return "tcg"
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return "tcg"
    return "kvm"


def host(accelerator: Literal["kvm", "tcg"], *, cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """What a snapshot depends on besides QEMU and its arguments. An emulated CPU is QEMU's; with KVM the guest
    sees the host's model and flags, and what the host's kernel makes of them."""
    if accelerator == "tcg":
        return []
    first, _, _ = cpuinfo.read_text().partition("\n\n")
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags")
    lines = [line for line in first.splitlines() if line.partition("\t")[0].strip() in wanted]
    return [os.uname().release, *lines]
