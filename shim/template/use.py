"""A template for a sandbox's VM. Nothing that is wrong with templates fails a start: the VM boots then, and the
log has one warning that says why."""

from __future__ import annotations

from collections.abc import Callable

from shim.errors import DataLoss, ShimError
from shim.hypervisor.api import Hypervisor, VmSpec
from shim.log import Log
from shim.template.store import Store, Template, inputs
from shim.value import replace


class Templates:
    """`create` is to begin the creation of the template of the settings' VM, and not wait for it."""

    def __init__(self, store: Store, log: Log, create: Callable[[], None]) -> None:
        self._store, self._log, self._create = store, log, create

    def choose(self, hypervisor: Hypervisor, *specs: VmSpec) -> VmSpec | None:
        """The first of these VMs of which there is a template, with its snapshot; None if there is none. The template
        of the very first is made beside if it is missing."""
        try:
            for number, spec in enumerate(specs):
                if (template := self._find(hypervisor, spec, create=number == 0)) is not None:
                    return replace(spec, snapshot=template.snapshot)
        except (ShimError, OSError) as error:
            self._log.warning("no template can be used, the VM boots", error=error)
        return None

    def _find(self, hypervisor: Hypervisor, spec: VmSpec, *, create: bool) -> Template | None:
        key = inputs(hypervisor.fingerprint(spec)).key
        try:
            template = self._store.find(key)
        except DataLoss as error:
            self._log.warning("broken template removed", key=key, error=error)
            self._store.remove(key)
            template = None
        else:
            if template is None and (reason := self._store.rejected(key)) is not None:
                self._log.warning("there is no template", key=key, error=reason)
                return None
        if template is None and create:
            self._create()
        return template

    def reject(self, hypervisor: Hypervisor, spec: VmSpec, error: ShimError) -> None:
        """A VM that was restored as `spec` says has failed over it, and one that booted has not."""
        try:
            key = inputs(hypervisor.fingerprint(spec)).key
            self._store.reject(key, f"a VM failed over it: {error}")
            self._log.info("template removed", key=key)
        except (ShimError, OSError) as trouble:
            self._log.warning("the template stays", error=trouble)
