"""Which accelerator a VM gets."""

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
