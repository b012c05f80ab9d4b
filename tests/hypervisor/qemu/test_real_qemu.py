"""The machine's own QEMU and virtiofsd take our options; the VM's CPUs never run here."""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from pathlib import Path

import pytest

from shim.errors import ChildFailed, ShimError
from shim.hypervisor.api import VhostUserFs, VmSpec
from shim.hypervisor.qemu.driver import QemuHypervisor
from shim.log import Log
from shim.rootfs import virtiofsd
from shim.rootfs.share import VirtiofsShare

pytestmark = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="no QEMU here")


def has_virtiofsd() -> bool:
    try:
        return bool(virtiofsd.find())
    except ShimError:
        return False


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    """A VM with something that looks like a kernel."""
    kernel = bytearray(8192)
    kernel[0x1F1] = 1
    kernel[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", kernel, 0x206, 0x20F)
    struct.pack_into("<I", kernel, 0x22C, 0x7FFFFFFF)  # the highest address of an initrd
    (tmp_path / "vmlinux").write_bytes(kernel)
    (tmp_path / "initrd").write_bytes(bytes(512))
    return VmSpec("c,1", tmp_path, tmp_path / "vmlinux", tmp_path / "initrd", ("x=1",), 128, 1, "tcg")


def test_it_starts_paused_and_quits(spec: VmSpec) -> None:
    async def scenario() -> None:
        vm = QemuHypervisor(Log(2, "error"))
        await vm.start(spec)
        pid = vm.pid
        assert (await vm.stop()).status == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(scenario())


def test_a_missing_kernel_is_told_in_qemus_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        spec = VmSpec("s", tmp_path, tmp_path / "gone", tmp_path / "gone", (), 128, 1, "tcg")
        with pytest.raises(ChildFailed, match=r"could not open kernel file .*gone"):
            await QemuHypervisor(Log(2, "error")).start(spec)

    asyncio.run(scenario())


@pytest.mark.skipif(os.geteuid() != 0 or not has_virtiofsd(), reason="needs root and virtiofsd")
def test_a_share_is_plugged_in_before_the_vm_runs(spec: VmSpec, tmp_path: Path) -> None:
    async def scenario() -> None:
        share = VirtiofsShare(tmp_path, Log(2, "error"))
        vm = QemuHypervisor(Log(2, "error"))
        try:
            await share.start()
            await vm.start(spec)
            await vm.add_device(VhostUserFs("fs0", share.tag, share.socket))
            assert (await vm.stop()).status == 0
            assert "virtiofsd" in await asyncio.wait_for(share.wait(), 5)
        finally:
            await share.aclose()

    asyncio.run(scenario())


def test_a_device_whose_backend_does_not_listen_is_refused_in_words(spec: VmSpec, tmp_path: Path) -> None:
    async def scenario() -> None:
        vm = QemuHypervisor(Log(2, "error"))
        await vm.start(spec)
        with pytest.raises(ShimError, match=r"Failed to connect to .*nobody\.sock"):
            await vm.add_device(VhostUserFs("fs0", "tag", tmp_path / "nobody.sock"))
        assert (await vm.stop()).status == 0

    asyncio.run(scenario())
