"""The choice of an accelerator."""

from __future__ import annotations

from pathlib import Path

import pytest

from shim.hypervisor.qemu.accelerator import choose, host


@pytest.mark.parametrize("wanted", ["kvm", "tcg"])
def test_a_setting_overrides(wanted: str, tmp_path: Path) -> None:
    assert choose(wanted, modules=tmp_path, device=tmp_path / "no") == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("module", "has_device", "chosen"),
    [
        ("kvm_intel", True, "kvm"),
        ("kvm_amd", True, "kvm"),
        ("kvm_intel", False, "tcg"),
        ("kvm", True, "tcg"),
        (None, True, "tcg"),
    ],
)
def test_kvm_needs_the_cpus_module_and_the_device(
    tmp_path: Path, module: str | None, has_device: bool, chosen: str
) -> None:
    if module is not None:
        (tmp_path / module).mkdir()
    device = tmp_path / "device"
    if has_device:
        device.touch()
    assert choose("auto", modules=tmp_path, device=device) == chosen


CPUINFO = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: A CPU
microcode\t: 0x1
cpu MHz\t\t: 2000.000
flags\t\t: fpu sse2

processor\t: 1
model name\t: Another
"""


def test_with_kvm_the_guest_sees_the_hosts_cpu_and_not_its_frequency(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO)
    found = host("kvm", cpuinfo=cpuinfo)
    assert found[1:] == [
        "vendor_id\t: GenuineIntel",
        "model name\t: A CPU",
        "microcode\t: 0x1",
        "flags\t\t: fpu sse2",
    ]
    assert host("tcg", cpuinfo=tmp_path / "gone") == []
