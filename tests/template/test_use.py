"""What a start makes of templates: it never fails over one, and says once why it boots."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from shim.errors import Internal
from shim.hypervisor.api import VmSpec
from shim.log import Log
from shim.template.create import create
from shim.template.store import Store, inputs
from shim.template.use import Templates
from shim.value import replace
from tests.fakes.hypervisor import FakeHypervisor


class Scene:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kernel = folder / "kernel"
        self.kernel.write_text("kernel")
        self.vm = self.another()
        self.store = Store(folder / "templates", 10)
        self.spec = VmSpec("c1", folder, self.kernel, self.kernel, (), 64, 1)
        self.key = inputs(self.vm.fingerprint(self.spec)).key
        self.fd = os.open(folder / "log", os.O_RDWR | os.O_CREAT)
        self.creations = 0
        self.templates = Templates(self.store, Log(self.fd), self._create)

    def another(self) -> FakeHypervisor:
        vm = FakeHypervisor()
        vm.files = (self.kernel,)
        return vm

    def _create(self) -> None:
        self.creations += 1

    def make(self) -> None:
        log = Log(self.fd, "error")
        asyncio.run(create(self.another(), self.spec, self.store, log, wait=False, timeout_s=1))

    def choose(self) -> VmSpec | None:
        return self.templates.choose(self.vm, self.spec)

    def warnings(self) -> list[str]:
        lines = (self.folder / "log").read_text().splitlines()
        return [line for line in lines if "level=warning" in line]


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_without_a_template_the_vm_boots_and_one_is_begun(scene: Scene) -> None:
    assert scene.choose() is None
    assert scene.creations == 1
    assert scene.warnings() == []


def test_with_one_only_the_snapshot_is_added(scene: Scene) -> None:
    scene.make()
    chosen = scene.choose()
    assert chosen and chosen.snapshot is not None and chosen.snapshot.state.read_bytes() == b"state"
    assert replace(chosen, snapshot=None) == scene.spec
    assert scene.creations == 0 and scene.warnings() == []


def test_another_machine_or_another_kernel_is_another_template(scene: Scene) -> None:
    scene.make()
    assert scene.templates.choose(scene.vm, replace(scene.spec, memory_mib=65)) is None
    scene.kernel.write_text("a new kernel")
    assert scene.choose() is None


def test_a_smaller_vm_s_template_does_until_the_right_one_is_made(scene: Scene) -> None:
    scene.make()
    larger = replace(scene.spec, vcpus=2)
    chosen = scene.templates.choose(scene.vm, larger, scene.spec)
    assert chosen and chosen.snapshot and chosen.vcpus == 1
    assert scene.creations == 1
    assert scene.templates.choose(scene.vm, larger, larger) is None  # of those that are there
    assert scene.templates.choose(scene.vm, scene.spec, larger) == chosen
    assert scene.creations == 2 and scene.warnings() == []


def test_a_broken_one_goes_with_one_warning_and_is_made_anew(scene: Scene) -> None:
    scene.make()
    (scene.folder / "templates" / scene.key / "memory").write_bytes(b"")
    assert scene.choose() is None
    assert scene.creations == 1
    assert not (scene.folder / "templates" / scene.key).exists()
    (warning,) = scene.warnings()
    assert "memory is of 0 bytes" in warning


def test_one_that_a_vm_failed_over_is_not_made_again_soon(scene: Scene) -> None:
    scene.make()
    scene.templates.reject(scene.vm, scene.spec, Internal("Unknown ramblock"))
    assert scene.choose() is None
    assert scene.creations == 0
    (warning,) = scene.warnings()
    assert "Unknown ramblock" in warning


@pytest.mark.parametrize("trouble", ["no kernel", "a file", "not private"])
def test_no_trouble_with_templates_fails_a_start(scene: Scene, trouble: str) -> None:
    if trouble == "no kernel":
        scene.kernel.unlink()
    elif trouble == "a file":
        (scene.folder / "templates").write_text("")
    else:
        (scene.folder / "templates").mkdir()
        (scene.folder / "templates").chmod(0o777)
    assert scene.choose() is None
    assert len(scene.warnings()) == 1
    scene.templates.reject(scene.vm, scene.spec, Internal("x"))
