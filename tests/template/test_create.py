"""Creation: boot, wait, save, publish; whatever fails leaves no template, no VM, and its reason."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from shim.errors import Aborted, DeadlineExceeded, Internal, ShimError, Unavailable
from shim.hypervisor.api import Snapshot, VmSpec
from shim.log import Log
from shim.template.create import create
from shim.template.store import Store, inputs
from tests.fakes.hypervisor import FakeHypervisor

LOG = Log(2, "error")


class Scene:
    def __init__(self, folder: Path) -> None:
        self.folder, self.kernel = folder, folder / "kernel"
        self.kernel.write_text("kernel")
        self.store = Store(folder / "templates", 10)
        self.vm = self.another()
        self.spec = VmSpec("t", folder, self.kernel, self.kernel, (), 64, 1)
        self.key = inputs(self.vm.fingerprint(self.spec)).key

    def another(self) -> FakeHypervisor:
        vm = FakeHypervisor()
        vm.files = (self.kernel,)
        return vm

    async def create(self, vm: FakeHypervisor | None = None, wait: bool = False) -> str:
        return await create(vm or self.vm, self.spec, self.store, LOG, wait=wait, timeout_s=0.05)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_vm_without_devices_is_booted_saved_and_ended(scene: Scene) -> None:
    assert asyncio.run(scene.create()) == scene.key
    assert scene.vm.calls == ["start", "resume", "console_line", "save", "stop"]
    assert scene.store.find(scene.key) is not None


def test_what_is_there_is_not_made_again(scene: Scene) -> None:
    asyncio.run(scene.create())
    second = scene.another()
    assert asyncio.run(scene.create(second)) == scene.key
    assert second.calls == []


def test_a_broken_one_is_made_again(scene: Scene) -> None:
    asyncio.run(scene.create())
    found = scene.store.find(scene.key)
    assert found is not None
    found.snapshot.state.write_bytes(b"")
    asyncio.run(scene.create(scene.another()))
    assert scene.store.find(scene.key) is not None


@pytest.mark.parametrize("step", ["start", "resume", "console_line", "save"])
def test_a_step_that_fails_leaves_its_reason_and_nothing_else(
    scene: Scene, step: str, tmp_path: Path
) -> None:
    scene.vm.fail[step] = Internal("broken on purpose")
    with pytest.raises(Internal, match="broken on purpose"):
        asyncio.run(scene.create())
    assert step == "start" or scene.vm.calls[-1] == "stop"
    assert scene.store.rejected(scene.key) == "creating it failed: broken on purpose"
    left = {path.name for path in (tmp_path / "templates").iterdir()}
    assert left == {".lock", f"{scene.key}.rejected"}
    assert 50 < rejected_for_s(scene) <= 60  # it may be mended meanwhile


def rejected_for_s(scene: Scene) -> float:
    return (scene.folder / f"templates/{scene.key}.rejected").stat().st_mtime - time.time()


def test_a_guest_that_never_settles_is_given_up(scene: Scene) -> None:
    class Silent(FakeHypervisor):
        async def console_line(self, text: str) -> None:
            await asyncio.Event().wait()

    vm = Silent()
    vm.files = scene.vm.files
    with pytest.raises(DeadlineExceeded, match=r"not up after 0\.05 s"):
        asyncio.run(scene.create(vm))
    assert vm.calls[-1] == "stop"
    assert 3500 < rejected_for_s(scene) <= 3600


def test_a_kernel_that_is_replaced_meanwhile_makes_no_template(scene: Scene) -> None:
    class Slow(FakeHypervisor):
        async def save(self, snapshot: Snapshot) -> None:
            await super().save(snapshot)
            scene.kernel.write_text("another kernel")

    vm = Slow()
    vm.files = scene.vm.files
    with pytest.raises(Aborted, match="replaced meanwhile"):
        asyncio.run(scene.create(vm))
    assert scene.store.all() == []


def test_the_second_creator_gives_up_or_waits_and_finds_it_done(scene: Scene) -> None:
    with scene.store.lock(wait=False), pytest.raises(Unavailable):
        asyncio.run(scene.create())
    assert scene.store.rejected(scene.key) is None
    assert asyncio.run(scene.create(wait=True)) == scene.key


def test_a_cancelled_creation_leaves_nothing(scene: Scene, tmp_path: Path) -> None:
    class Held(FakeHypervisor):
        async def save(self, snapshot: Snapshot) -> None:
            snapshot.memory.write_bytes(b"half")
            await asyncio.Event().wait()

    async def scenario() -> None:
        vm = Held()
        vm.files = scene.vm.files
        task = asyncio.create_task(scene.create(vm))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert vm.calls[-1] == "stop"
        assert [path.name for path in (tmp_path / "templates").iterdir()] == [".lock"]

    asyncio.run(scenario())


def test_an_error_of_the_disk_is_not_hidden(scene: Scene, tmp_path: Path) -> None:
    (tmp_path / "templates").write_text("a file")
    with pytest.raises((ShimError, OSError)):
        asyncio.run(scene.create())
