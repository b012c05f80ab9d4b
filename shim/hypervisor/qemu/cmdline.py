"""QEMU's command line for one VM.

The machine is q35 with as little as possible on it. Behind its one root port sits a PCIe-to-PCI bridge, and
every device is hot-plugged into that bridge by ACPI (about 30 ms; native PCIe hotplug needs seconds to
remove one, and a root port per device would cost boot time for each). Guest memory is a memfd of ours that
vhost-user processes can map. No firmware decompresses a kernel: QEMU loads an ELF kernel by its PVH note.

The options are those that QEMU 7.2 and 10.x have in common.
"""

from __future__ import annotations

from typing import Literal

from shim.errors import InvalidArgument
from shim.hypervisor.api import VmSpec

ROOT_PORT, HOTPLUG_BUS = "port0", "bridge0"
# How many times memory can be plugged in: vhost-user backends know eight regions of it, and a large VM begins with two.
MEMORY_SLOTS = 6
_CONSOLE_FD_SET = 1

_MACHINE = (
    "q35,memory-backend=mem0,smm=off,sata=off,smbus=off,hpet=off,vmport=off"  # nothing a guest would miss
)
# QEMU needs no new privileges, programs or scheduling after its start (seccomp).
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

# Translated code in MiB: QEMU's own limit is 1024, which a guest that starts programs all the time does reach, and it
# counts in the pod's cgroup.
_EMULATOR = "tcg,thread=multi,tb-size=128"
# Emulated, a string instruction is a loop of single moves: with these flags the guest's kernel would copy by the
# byte (rep movsb), without them by eight (rep movsq). A third of the CPU time of bulk output.
_EMULATED_CPU = "max,-erms,-fsrm"

# What the guest's kernel is told before the caller's own parameters; the kernel takes the last of two.
_KERNEL_PARAMS = (
    "console=ttyS0",
    "quiet",
    "panic=-1",  # reboot at once, which -no-reboot turns into QEMU's end
    "cryptomgr.notests",  # self-tests of ciphers: 0.2 s under TCG
    "tsc=reliable",  # or several CPUs would make the clock fall back to a slower one
    "memhp_default_state=online",  # memory that is plugged in is used at once
    "swiotlb=noforce",  # or room for memory above 4 GiB would cost 64 MiB of bounce buffers, which no device needs
)
# An emulated kernel has to measure how fast the TSC counts, and may fail: our agent decides (`shim/guest/clock.py`).
_EMULATED_KERNEL_PARAMS = ("clocksource=acpi_pm",)


def machine(spec: VmSpec, accelerator: Literal["kvm", "tcg"]) -> list[str]:
    """The arguments that make the machine which the guest sees. A snapshot fits these and no others.

    Raises InvalidArgument for a spec no machine can be made of.
    """
    if spec.memory_mib < 64 or spec.vcpus < 1:
        raise InvalidArgument(f"a VM of {spec.memory_mib} MiB and {spec.vcpus} CPUs cannot be made")
    kvm = accelerator == "kvm"
    accel = ("kvm", "host") if kvm else (_EMULATOR, _EMULATED_CPU)
    kernel_params = (*_KERNEL_PARAMS, *(() if kvm else _EMULATED_KERNEL_PARAMS), *spec.kernel_params)
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-S"),
        *("-display", "none"),
        *("-sandbox", _SANDBOX),
        *("-machine", _MACHINE),
        *("-accel", accel[0]),
        *("-cpu", accel[1]),
        *("-smp", str(spec.vcpus) + (f",maxcpus={spec.max_vcpus}" if spec.max_vcpus > spec.vcpus else "")),
        *("-m", f"{spec.memory_mib}M{_room(spec)}"),
        *("-rtc", "base=utc"),
        *("-device", f"pcie-root-port,id={ROOT_PORT},bus=pcie.0,chassis=1,slot=1"),
        *("-device", f"pcie-pci-bridge,id={HOTPLUG_BUS},bus={ROOT_PORT}"),
        *("-serial", "chardev:console"),
        *("-kernel", str(spec.kernel)),
        *("-initrd", str(spec.initrd)),
        *("-append", " ".join(kernel_params)),
    ]


def _room(spec: VmSpec) -> str:
    """For memory to be plugged in."""
    if spec.max_memory_mib <= spec.memory_mib:
        return ""
    return f",slots={MEMORY_SLOTS},maxmem={spec.max_memory_mib}M"


def arguments(
    spec: VmSpec, accelerator: Literal["kvm", "tcg"], *, qmp_fd: int, console_fd: int, memory_fd: int
) -> list[str]:
    """All arguments after the program's name. The VM's CPUs are stopped at first (-S); with a snapshot it waits
    for `migrate-incoming`.

    QEMU inherits `qmp_fd`, a connected stream socket, the control channel; `console_fd`, the write end of a
    pipe for the guest's serial console; `memory_fd`, a file of the memory's size.
    """
    # A named file, not a memfd of QEMU's own: only such memory stays out of a snapshot's state (x-ignore-shared).
    memory = (
        f"memory-backend-file,id=mem0,size={spec.memory_mib}M,share=on,mem-path=/proc/self/fd/{memory_fd}"
    )
    return [
        *("-name", f"sandbox-{_escaped(spec.name)}"),
        *("-object", memory),
        *("-chardev", f"socket,id=qmp,fd={qmp_fd}"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-add-fd", f"fd={console_fd},set={_CONSOLE_FD_SET}"),
        *("-chardev", f"file,id=console,path=/dev/fdset/{_CONSOLE_FD_SET},append=on"),
        *machine(spec, accelerator),
        *(() if spec.snapshot is None else ("-incoming", "defer")),
    ]


def _escaped(value: str) -> str:
    """A value inside a comma-separated option."""
    return value.replace(",", ",,")
