"""A Create that fails at any step: each call that it makes of the host or the guest is made to fail, once before it
has any effect and once (where nobody else answers for it) behind it. Nothing of the container may stay, nor of a
sandbox that was to boot for it, and a later Create must be told the same or succeed."""

from __future__ import annotations

import errno
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from shim.errors import Internal, NotFound
from shim.network.api import Endpoint, Interface, Neighbour, Network, Route
from shim.pb.containerd.types import Mount
from tests.sandbox.stack import Stack, with_stack

# What undoes, looks or waits is not a step.
_NO_STEPS = {"aclose", "stop", "wait", "remove", "remove_disk", "remove_container", "signal_process"}
_NO_STEPS |= {"handed_over", "links", "oom_event", "wait_process", "daemon"}
_NO_STEPS |= {"close", "forget", "forget_container", "forget_redirection"}
# Who fails here undoes what it has done itself; what is on record and never made does no harm.
_UNDOES_ITSELF = {
    "share.start",
    "share.bind",
    "share.mount_rootfs",
    "hypervisor.start",
    "hypervisor.add_disk",
}
_UNDOES_ITSELF |= {"device.pass_fd", "netns.attach", "parts.connect_agent", "record.add_redirection"}
# A name that no interface of a real machine has: undoing runs the real tc.
NIC = Interface("kpt-none0", "02:00:00:00:00:01", 1400, ("10.88.0.2/24",))
NETWORK = Network(
    (Endpoint(NIC, "tap0_kata"),),
    (Route("kpt-none0", gateway="10.88.0.1"),),
    (Neighbour("kpt-none0", "10.88.0.77", "02:00:00:00:00:77"),),
)


class Tripwire:
    """Numbers the calls of what is put behind it; the one with the number `at` fails, when it is `late` behind its
    effect."""

    def __init__(self, at: int = -1, *, late: bool = False) -> None:
        self.at, self.late = at, late
        self.calls: list[str] = []

    @contextmanager
    def step(self, name: str) -> Any:
        self.calls.append(name)
        hit = len(self.calls) - 1 == self.at
        if hit and not self.late:
            raise self._error(name)
        yield
        if hit:
            raise self._error(name)

    @staticmethod
    def _error(name: str) -> Exception:
        if name.startswith("record."):
            return OSError(errno.ENOSPC, "broken on purpose")
        return Internal("broken on purpose")


class Wired:
    """`target`, whose methods are steps."""

    def __init__(self, wire: Tripwire, name: str, target: Any) -> None:
        self._wire, self._name, self._target = wire, name, target

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(self._target, attribute)
        if not inspect.ismethod(found) or attribute.startswith("_") or attribute in _NO_STEPS:
            return found
        name = f"{self._name}.{attribute}"
        if attribute == "enter":
            return lambda netns: self._enter(name, found(netns))
        if inspect.iscoroutinefunction(found):
            return wired_call(self._wire, name, found)

        def call(*args: Any, **more: Any) -> Any:
            with self._wire.step(name):
                return found(*args, **more)

        return call

    @asynccontextmanager
    async def _enter(self, name: str, entering: AbstractAsyncContextManager[Any]) -> AsyncIterator[Any]:
        with self._wire.step(name):
            async with entering as netns:
                yield Wired(self._wire, "netns", netns)


def wired_call(wire: Tripwire, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **more: Any) -> Any:
        with wire.step(name):
            return await function(*args, **more)

    return call


class Rig:
    """A stack behind a tripwire, and containers with all that a Create can need."""

    def __init__(self, shim: Stack, wire: Tripwire) -> None:
        self.shim, self.wire = shim, wire
        self.agent, self.share, self.vm = shim.agent, shim.share, shim.hypervisor
        self.device, self.record = shim.device_process, shim.record
        shim.netns, shim.network.network = "/proc/self/ns/net", NETWORK
        shim.device_process.client = Wired(wire, "device", shim.device)  # type: ignore[assignment]
        for name in ("agent", "share", "device_process", "hypervisor", "network", "record"):
            setattr(shim, name, Wired(wire, name, getattr(shim, name)))
        shim.sandbox._record = shim.record
        shim._connect = wired_call(wire, "parts.connect_agent", shim._connect)  # type: ignore[method-assign]
        (shim.directory / "image").touch()

    async def create(self, name: str, image: str = "overlay") -> None:
        """With streams, a file of the host's, and a rootfs that is shared or a disk."""
        source = str(self.shim.directory / "image")
        volume = {"type": "bind", "source": source, "destination": "/v", "options": ["ro"]}
        rootfs = [Mount(image, source, options=["loop"] if image == "ext4" else [])]
        fifos = self.shim.fifos("stdin", "stdout", "stderr")
        await self.shim.create(name, spec={"mounts": [volume]}, rootfs=rootfs, **fifos)

    async def create_both(self) -> int:
        """The number of steps of the first container, which boots the VM."""
        await self.create("c1", "ext4")
        first = len(self.wire.calls)
        await self.create("c2")
        return first

    def assert_nothing_of(self, name: str) -> None:
        """Of a container whose Create has failed."""
        assert name not in self.share.mounted and name not in self.record.containers
        plugged = [call.partition(":")[0] for call in self.vm.calls]
        assert "stop" in plugged or plugged.count("add_disk") - plugged.count("remove_disk") == (name != "c1")
        kept = {"c1": 0, "c2": 3}[name]
        assert all(stream.closed for stream in list(self.shim.device.streams.values())[kept:])
        asked = [call for call in self.agent.calls if call in ("create_container", "remove_container")]
        assert asked.count("create_container") - asked.count("remove_container") <= (name != "c1")

    def assert_no_vm(self) -> None:
        assert self.share.calls[-1] == self.device.calls[-1] == "aclose"
        assert "start" not in self.vm.calls or "stop" in self.vm.calls or self.vm._exit is None
        assert not self.record.redirections


def assert_step_is_undone(folder: Path, at: int, *, late: bool, boot: int, first: int) -> None:
    """`boot` steps are those of the VM, `first` of the first container with it."""

    @with_stack
    async def run(shim: Stack) -> None:
        rig = Rig(shim, Tripwire(at, late=late))
        name = "c1" if at < first else "c2"
        with pytest.raises(Exception, match="broken on purpose"):
            await rig.create_both()
        with pytest.raises(NotFound):
            await shim.state(name)
        rig.assert_nothing_of(name)
        assert shim.told() == ([] if name == "c1" else ["TaskCreated:c1"])
        if at < boot:
            rig.assert_no_vm()
            with pytest.raises(Exception, match="broken on purpose"):
                await rig.create("c3")
        else:
            await rig.create(name)
            await shim.start(name)
            if name == "c2":
                await shim.start("c1")
        await shim.sandbox.aclose()
        rig.assert_no_vm()

    run(folder)


@pytest.mark.parametrize("late", [False, True], ids=["before", "behind"])
def test_a_create_that_fails_at_any_step_leaves_nothing(tmp_path: Path, late: bool) -> None:
    wire, first = Tripwire(), 0

    @with_stack
    async def learn(shim: Stack) -> None:
        nonlocal first
        first = await Rig(shim, wire).create_both()

    learn(tmp_path)
    boot = wire.calls.index("record.set_container")
    assert len(wire.calls) > 35
    for number, name in enumerate(wire.calls):
        if late and name in _UNDOES_ITSELF:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            assert_step_is_undone(folder, number, late=late, boot=boot, first=first)
        except BaseException as error:
            error.add_note(f"step {number}: {name}")
            raise
