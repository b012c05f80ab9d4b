"""The command line: what must be on it, and that nothing of a caller's can become another option."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from shim.errors import InvalidArgument
from shim.hypervisor.api import Snapshot, VmSpec
from shim.hypervisor.qemu.cmdline import HOTPLUG_BUS, arguments, machine
from shim.value import replace

SPEC = VmSpec(
    name="pod-1",
    run_dir=Path("/run/x"),
    kernel=Path("/guest/vmlinux"),
    initrd=Path("/guest/initrd.cpio"),
    kernel_params=("agent.log=debug", "quiet=0"),
    memory_mib=512,
    vcpus=2,
)


def option(args: list[str], name: str) -> list[str]:
    return [value for key, value in itertools.pairwise(args) if key == name]


def test_the_vm_starts_paused_with_its_memory_shareable() -> None:
    args = arguments(SPEC, "tcg", qmp_fd=5, console_fd=6, memory_fd=7)
    assert "-S" in args
    assert "-nodefaults" in args
    memory = "memory-backend-file,id=mem0,size=512M,share=on,mem-path=/proc/self/fd/7"
    assert option(args, "-object") == [memory]
    assert option(args, "-m") == ["512M"]
    assert "memory-backend=mem0" in option(args, "-machine")[0]


@pytest.mark.parametrize(("accelerator", "cpu"), [("kvm", "host"), ("tcg", "max,-erms,-fsrm")])
def test_the_cpu_follows_the_accelerator(accelerator: str, cpu: str) -> None:
    args = arguments(SPEC, accelerator, qmp_fd=5, console_fd=6, memory_fd=7)  # type: ignore[arg-type]
    assert option(args, "-accel")[0].startswith(accelerator)
    assert ("tb-size=128" in option(args, "-accel")[0]) == (accelerator == "tcg")
    assert option(args, "-cpu") == [cpu]
    assert option(args, "-smp") == ["2"]


def test_a_vm_that_may_grow_has_room_for_memory_and_cpus() -> None:
    growing = replace(SPEC, max_memory_mib=4096, max_vcpus=8)
    args = arguments(growing, "tcg", qmp_fd=5, console_fd=6, memory_fd=7)
    assert option(args, "-m") == ["512M,slots=6,maxmem=4096M"]
    assert option(args, "-smp") == ["2,maxcpus=8"]
    full = replace(SPEC, max_memory_mib=512, max_vcpus=1)
    assert machine(full, "tcg") == machine(SPEC, "tcg") != machine(growing, "tcg")
    # New memory is used at once, and room for it costs the guest none.
    (append,) = option(args, "-append")
    assert {"memhp_default_state=online", "swiotlb=noforce"} <= set(append.split())


def test_the_callers_kernel_parameters_come_last() -> None:
    (append,) = option(arguments(SPEC, "tcg", qmp_fd=5, console_fd=6, memory_fd=7), "-append")
    assert append.startswith("console=ttyS0 ")
    assert append.endswith(" agent.log=debug quiet=0")


def test_hotplug_has_one_bridge_behind_one_port() -> None:
    devices = option(arguments(SPEC, "tcg", qmp_fd=5, console_fd=6, memory_fd=7), "-device")
    assert [device.partition(",")[0] for device in devices] == ["pcie-root-port", "pcie-pci-bridge"]
    assert f"id={HOTPLUG_BUS}" in devices[1]


def test_inherited_fds_are_named() -> None:
    args = arguments(SPEC, "tcg", qmp_fd=55, console_fd=66, memory_fd=77)
    assert "socket,id=qmp,fd=55" in option(args, "-chardev")
    assert option(args, "-add-fd") == ["fd=66,set=1"]


def test_a_restored_vm_has_the_same_machine_and_waits_for_its_state() -> None:
    restored = replace(SPEC, name="pod-2", snapshot=Snapshot(Path("/t/memory"), Path("/t/state")))
    args = arguments(restored, "tcg", qmp_fd=5, console_fd=6, memory_fd=7)
    assert machine(restored, "tcg") == machine(SPEC, "tcg")
    assert option(args, "-incoming") == ["defer"]
    assert "-incoming" not in arguments(SPEC, "tcg", qmp_fd=5, console_fd=6, memory_fd=7)
    assert not {"pod-2", "/t/memory", "/t/state"} & set(args)


@pytest.mark.parametrize(
    "changed",
    [
        {"memory_mib": 513},
        {"vcpus": 1},
        {"kernel": Path("/other")},
        {"initrd": Path("/other")},
        {"kernel_params": ()},
    ],
)
def test_what_the_guest_sees_is_in_the_machine(changed: dict[str, Any]) -> None:
    assert machine(replace(SPEC, **changed), "tcg") != machine(SPEC, "tcg")
    assert machine(SPEC, "kvm") != machine(SPEC, "tcg")


def test_a_comma_in_the_name_makes_no_option() -> None:
    (name,) = option(
        arguments(replace(SPEC, name="a,process=x"), "tcg", qmp_fd=5, console_fd=6, memory_fd=7), "-name"
    )
    assert name == "sandbox-a,,process=x"


@pytest.mark.parametrize(("memory_mib", "vcpus"), [(0, 1), (63, 1), (-1, 1), (512, 0), (512, -2)])
def test_a_machine_that_cannot_be_is_refused(memory_mib: int, vcpus: int) -> None:
    with pytest.raises(InvalidArgument):
        arguments(
            replace(SPEC, memory_mib=memory_mib, vcpus=vcpus), "tcg", qmp_fd=5, console_fd=6, memory_fd=7
        )
