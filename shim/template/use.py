"""A template for a sandbox's VM. Nothing that is wrong with templates fails a start: the VM boots then, and the
log has one warning that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from shim.errors import DataLoss, ShimError
from shim.hypervisor.api import Hypervisor, VmSpec
from shim.log import Log
from shim.template.store import Store, inputs


class Templates:
    """`create` is to begin the creation of the template of the settings' VM, and not wait for it."""

    def __init__(self, store: Store, log: Log, create: Callable[[], None]) -> None:
        self._store, self._log, self._create = store, log, create

    def choose(self, hypervisor: Hypervisor, spec: VmSpec) -> VmSpec:
        """The spec with a snapshot if there is one; if not, it is made beside."""
        try:
            key = inputs(hypervisor.fingerprint(spec)).key
            try:
                template = self._store.find(key)
            except DataLoss as error:
                self._log.warning("broken template removed, the VM boots", key=key, error=error)
                self._store.remove(key)
                template = None
            else:
                if template is None and (reason := self._store.rejected(key)) is not None:
                    self._log.warning("there is no template, the VM boots", key=key, error=reason)
                    return spec
            if template is None:
                self._create()
                return spec
        except (ShimError, OSError) as error:
            self._log.warning("no template can be used, the VM boots", error=error)
            return spec
        return replace(spec, snapshot=template.snapshot)

    def reject(self, hypervisor: Hypervisor, spec: VmSpec, error: ShimError) -> None:
        """A VM that was restored as `spec` says has failed over it, and one that booted has not."""
        try:
            key = inputs(hypervisor.fingerprint(spec)).key
            self._store.reject(key, f"a VM failed over it: {error}")
            self._log.info("template removed", key=key)
        except (ShimError, OSError) as trouble:
            self._log.warning("the template stays", error=trouble)
