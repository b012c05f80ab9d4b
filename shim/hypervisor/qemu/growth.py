"""Memory and CPUs plugged into a running QEMU, for good.

    memory   object-add (a memfd that vhost-user processes can map), device_add of a DIMM on it while the CPUs stand
             still, and the guest's answer (ACPI's _OST): by then its kernel has put the memory to use
    a CPU    device_add of the first that QEMU has room for and does not have; the guest's agent starts it

Source: qapi/qom.json, qapi/qdev.json, qapi/misc.json, qapi/machine.json, qapi/acpi.json; ACPI 6.5, 6.3.5 (_OST);
QEMU 7.2, tools/virtiofsd/fuse_virtio.c (fv_queue_thread), hw/virtio/vhost-user-fs.c (vuf_set_status).
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from shim.errors import ResourceExhausted, Unavailable
from shim.hypervisor.api import NotTaken
from shim.hypervisor.qemu import cmdline
from shim.hypervisor.qemu.qmp import Event, QmpClient

# An emulated guest needs 35 ms for each GiB.
_TAKE_S = 30.0
_MIB = 1 << 20
_OST_SUCCESS = 0


class Growth:
    """All of one QEMU. `on_event` is to get all of its events."""

    def __init__(self, take_s: float = _TAKE_S) -> None:
        self._take_s = take_s
        self._dimms = 0
        # Never one twice: what was given up, or answered too late, may be in the VM all the same.
        self._number = itertools.count()
        self._answers: dict[str, asyncio.Future[int]] = {}

    def on_event(self, event: Event) -> None:
        match event:
            case Event("ACPI_DEVICE_OST", {"info": {"device": str(device), "status": int(status)}}):
                answer = self._answers.get(device)
                if answer is not None and not answer.done():
                    answer.set_result(status)

    def on_ended(self) -> None:
        """The guest will not answer any more."""
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Unavailable("QEMU has ended"))
                answer.exception()  # whoever waits gets it; nobody has to

    async def add_memory(self, qmp: QmpClient, memory_mib: int) -> None:
        """See `Hypervisor.add_memory`."""
        if self._dimms == cmdline.MEMORY_SLOTS:
            raise ResourceExhausted(
                f"memory was plugged into this VM {self._dimms} times, and it has no more slots"
            )
        dimm = f"dimm{next(self._number)}"
        backend = f"{dimm}-memory"
        memory = {"qom-type": "memory-backend-memfd", "id": backend, "size": memory_mib * _MIB, "share": True}
        answer = self._answers[dimm] = asyncio.get_running_loop().create_future()
        try:
            async with AsyncExitStack() as undo:
                await qmp.execute("object-add", memory)
                undo.push_async_callback(qmp.execute, "object-del", {"id": backend})
                async with _quiet(qmp):
                    await qmp.execute("device_add", {"driver": "pc-dimm", "id": dimm, "memdev": backend})
                undo.pop_all()
            self._dimms += 1
            async with asyncio.timeout(self._take_s):
                status = await answer
        except TimeoutError as error:
            raise NotTaken(
                f"the guest has not taken {memory_mib} MiB more memory in {self._take_s:g} s"
            ) from error
        finally:
            del self._answers[dimm]
        if status != _OST_SUCCESS:
            raise NotTaken(f"the guest does not take {memory_mib} MiB more memory (_OST {status:#x})")

    async def add_vcpu(self, qmp: QmpClient) -> None:
        """See `Hypervisor.add_vcpu`."""
        slots = await qmp.execute("query-hotpluggable-cpus")
        kind, place = _free(slots)
        await qmp.execute("device_add", {"driver": kind, "id": f"cpu{next(self._number)}", **place})


@asynccontextmanager
async def _quiet(qmp: QmpClient) -> AsyncIterator[None]:
    """Inside, no CPU runs and no vhost-user backend has a request at work. One that cannot be told of a single region
    (CONFIGURE_MEM_SLOTS; virtiofsd 7.2 can) gets the whole table anew, and libvhost-user unmaps everything then, also
    what a request at work points to. A stop makes QEMU wait for the backends to be done with their queues, which then
    start with the new memory."""
    await qmp.execute("stop")
    try:
        yield
    finally:
        await qmp.execute("cont")


def _free(slots: Any) -> tuple[str, dict[str, Any]]:
    """The first place without a CPU in it: the driver that goes there, and which place it is."""
    # QEMU lists the highest first.
    for slot in reversed(slots if isinstance(slots, list) else []):
        match slot:
            case {"type": str(kind), "props": dict(place)} if "qom-path" not in slot:
                return kind, place
    raise ResourceExhausted("this VM has no room for another CPU")
