"""Memory and CPUs into a QEMU, by the commands that it gets and what it and its guest answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shim.errors import ResourceExhausted, Unavailable
from shim.hypervisor.api import NotTaken
from shim.hypervisor.qemu.cmdline import MEMORY_SLOTS
from shim.hypervisor.qemu.growth import Growth
from shim.hypervisor.qemu.qmp import Event, QmpError

Commands = list[tuple[str, Any]]


class Qemu:
    """Stands in for a `QmpClient`: notes commands, fails where told to; `guest` hears of every device."""

    def __init__(self, guest: Callable[[str], None] = lambda device: None, fail: str = "") -> None:
        self.guest, self.fail = guest, fail
        self.commands: Commands = []
        self.slots: Any = []

    async def execute(self, command: str, arguments: Any = None) -> Any:
        self.commands.append((command, arguments))
        if command == self.fail:
            raise QmpError(f"QMP {command}: no")
        if command == "device_add":
            self.guest(arguments["id"])
        return self.slots if command == "query-hotpluggable-cpus" else {}


def ost(device: Any, status: Any, **more: Any) -> Event:
    return Event("ACPI_DEVICE_OST", {"info": {"device": device, "status": status, "slot": "0", **more}})


def test_memory_is_a_dimm_that_others_can_map_and_the_guest_has_taken() -> None:
    async def scenario() -> None:
        growth = Growth()
        qemu: Any = Qemu(lambda device: growth.on_event(ost(device, 0)))
        await growth.add_memory(qemu, 256)
        await growth.add_memory(qemu, 128)
        assert qemu.commands == [
            ("object-add", {**memory("dimm0-memory", 256), "share": True}),
            ("stop", None),
            ("device_add", {"driver": "pc-dimm", "id": "dimm0", "memdev": "dimm0-memory"}),
            ("cont", None),
            ("object-add", {**memory("dimm1-memory", 128), "share": True}),
            ("stop", None),
            ("device_add", {"driver": "pc-dimm", "id": "dimm1", "memdev": "dimm1-memory"}),
            ("cont", None),
        ]

    asyncio.run(scenario())


def memory(name: str, mib: int) -> dict[str, Any]:
    return {"qom-type": "memory-backend-memfd", "id": name, "size": mib << 20}


@pytest.mark.parametrize(
    ("fail", "undone"), [("object-add", []), ("stop", ["object-del"]), ("device_add", ["cont", "object-del"])]
)
def test_memory_that_qemu_refuses_leaves_nothing_and_takes_no_slot(fail: str, undone: list[str]) -> None:
    async def scenario() -> None:
        growth = Growth()
        qemu: Any = Qemu(lambda device: growth.on_event(ost(device, 0)), fail)
        with pytest.raises(QmpError):
            await growth.add_memory(qemu, 128)
        names = [command for command, _ in qemu.commands]
        assert names[names.index(fail) + 1 :] == undone
        qemu.fail = ""
        for _ in range(MEMORY_SLOTS):
            await growth.add_memory(qemu, 128)
        with pytest.raises(ResourceExhausted, match=f"{MEMORY_SLOTS} times"):
            await growth.add_memory(qemu, 128)

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["memory", "vcpu"])
def test_what_was_given_up_while_qemu_was_at_it_stands_in_nobodys_way(what: str) -> None:
    """A container that is deleted while it is created, or a QEMU that answers too late: it has it all the same."""

    async def scenario() -> None:
        growth, ids = Growth(), []
        qemu: Any = Qemu(lambda device: (ids.append(device), growth.on_event(ost(device, 0))))
        qemu.slots = [{"type": "cpu", "props": {"core-id": 1}}]
        real, answers = qemu.execute, asyncio.Event()

        async def execute(command: str, arguments: Any = None) -> Any:
            if command == "device_add" and not answers.is_set():
                await real(command, arguments)
                await answers.wait()
            return await real(command, arguments)

        qemu.execute = execute
        add = (lambda: growth.add_memory(qemu, 128)) if what == "memory" else lambda: growth.add_vcpu(qemu)
        adding = asyncio.create_task(add())
        await asyncio.sleep(0.01)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
        answers.set()
        await add()
        assert len(ids) == len(set(ids)) == 2

    asyncio.run(scenario())


def test_a_guest_that_refuses_or_stays_mute_is_told_of() -> None:
    async def scenario() -> None:
        growth = Growth(take_s=0.01)
        refusing: Any = Qemu(lambda device: growth.on_event(ost(device, 0x81)))
        with pytest.raises(NotTaken, match=r"128 MiB more memory \(_OST 0x81\)"):
            await growth.add_memory(refusing, 128)
        mute: Any = Qemu()
        with pytest.raises(NotTaken, match=r"has not taken 128 MiB more memory in 0\.01 s"):
            await growth.add_memory(mute, 128)
        growth.on_event(ost("dimm1", 0))  # too late
        assert "object-del" not in [command for command, _ in mute.commands]  # it stays

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "said",
    [
        ost("dimm1", 0),
        ost(None, 0, **{"slot-type": "CPU"}),
        ost("dimm0", "0"),
        Event("ACPI_DEVICE_OST", {"info": "dimm0"}),
        Event("DEVICE_DELETED", {"device": "dimm0"}),
    ],
)
def test_another_event_is_no_answer(said: Event) -> None:
    async def scenario() -> None:
        growth = Growth()

        def guest(device: str) -> None:
            growth.on_event(said)
            growth.on_event(ost(device, 3))
            growth.on_event(ost(device, 0))  # the first counts

        with pytest.raises(NotTaken, match="0x3"):
            await growth.add_memory(Qemu(guest), 128)  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_a_vm_that_ends_answers_nobody_and_keeps_nobody_waiting() -> None:
    async def scenario() -> None:
        growth = Growth()
        with pytest.raises(Unavailable):
            await growth.add_memory(Qemu(lambda device: growth.on_ended()), 128)  # type: ignore[arg-type]

    asyncio.run(scenario())


def test_a_cpu_goes_to_the_first_free_place() -> None:
    async def scenario() -> None:
        growth = Growth()
        qemu: Any = Qemu()
        kind = "max-x86_64-cpu"
        place = {"socket-id": 0, "thread-id": 0}
        qemu.slots = [
            {"type": kind, "props": {**place, "core-id": 2}, "vcpus-count": 1},
            {"type": kind, "props": {**place, "core-id": 1}, "vcpus-count": 1},
            {"type": kind, "props": {**place, "core-id": 0}, "vcpus-count": 1, "qom-path": "/machine/x"},
        ]
        await growth.add_vcpu(qemu)
        assert qemu.commands[-1] == ("device_add", {"driver": kind, "id": "cpu0", **place, "core-id": 1})
        qemu.slots[1]["qom-path"] = "/machine/y"
        await growth.add_vcpu(qemu)
        assert qemu.commands[-1] == ("device_add", {"driver": kind, "id": "cpu1", **place, "core-id": 2})
        qemu.slots[0]["qom-path"] = "/machine/z"
        with pytest.raises(ResourceExhausted, match="no room for another CPU"):
            await growth.add_vcpu(qemu)

    asyncio.run(scenario())


@pytest.mark.parametrize("slots", [None, [], "x", [{"type": 1, "props": {}}], [{"props": {}}]])
def test_an_answer_without_places_has_no_room(slots: Any) -> None:
    async def scenario() -> None:
        qemu: Any = Qemu()
        qemu.slots = slots
        with pytest.raises(ResourceExhausted):
            await Growth().add_vcpu(qemu)

    asyncio.run(scenario())
