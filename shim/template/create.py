"""Make a template: boot a VM that has no devices, wait until its agent has nothing left to do, save it."""

from __future__ import annotations

import asyncio

from shim.errors import Aborted, DeadlineExceeded, ResourceExhausted
from shim.hypervisor.api import Hypervisor, VmSpec
from shim.log import Log
from shim.template.store import POSTPONED_S, REJECTED_S, Store, inputs
from shim.value import replace

# The agent says so in a VM without devices (shim/guest/main.py).
SETTLED = "agent settled"


async def create(
    hypervisor: Hypervisor, spec: VmSpec, store: Store, log: Log, *, wait: bool, timeout_s: float
) -> str:
    """The key of the template of this VM, which is made unless it is there. With `wait` another creator is
    waited for, else Unavailable. When it cannot be made, the store knows why from now on."""
    with store.lock(wait=wait):
        made_of = inputs(hypervisor.fingerprint(spec))
        for key in store.prune(keep=made_of.key):
            log.info("template pruned", key=key)
        if made_of.key in (template.key for template in store.all()):
            return made_of.key
        try:
            await _create(hypervisor, replace(spec, snapshot=None), store, timeout_s)
        except Exception as error:
            # A guest that stays mute and a template over the limit are so again; a missing program or a full disk is
            # somebody's to mend.
            lasting = isinstance(error, DeadlineExceeded | ResourceExhausted)
            for_s = REJECTED_S if lasting else POSTPONED_S
            store.reject(made_of.key, f"creating it failed: {error}", for_s)
            raise
        store.prune(keep=made_of.key)
    return made_of.key


async def _create(hypervisor: Hypervisor, spec: VmSpec, store: Store, timeout_s: float) -> None:
    made_of = inputs(hypervisor.fingerprint(spec))
    await hypervisor.start(spec)
    try:
        await hypervisor.resume()
        try:
            async with asyncio.timeout(timeout_s):
                await hypervisor.console_line(SETTLED)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the guest's agent was not up after {timeout_s:g} s") from error
        with store.new(made_of, spec.memory_mib, spec.vcpus) as snapshot:
            await hypervisor.save(snapshot)
            if inputs(hypervisor.fingerprint(spec)) != made_of:
                raise Aborted("the VMM, the kernel or the image was replaced meanwhile")
    finally:
        await hypervisor.stop()
