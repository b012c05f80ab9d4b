"""What a sandbox asks of a hypervisor: boot one VM, tell when it died, stop it.

Pure types; `qemu/` is the one implementation, `tests/fakes/` has another. A device is never part of the
boot: a VM may be restored from a template, which cannot hold vhost-user devices, so they are plugged in
while the VM is paused and before `resume`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from shim.errors import DataLoss, FailedPrecondition, ResourceExhausted
from shim.value import Value

Accelerator = Literal["auto", "kvm", "tcg"]


class Snapshot(Value):
    """A VM saved by `Hypervisor.save`: its memory (a sparse file, as long as the VM's memory) and the state of
    everything else. A VM is restored from copies: the files never change."""

    memory: Path
    state: Path


class SnapshotRefused(DataLoss):
    """The snapshot is at fault: a file of it is not what was saved, or the VMM does not take it."""


class SnapshotUnusable(ResourceExhausted):
    """It cannot be restored now, for a reason outside of it: no room, or it was removed meanwhile."""


class NotTaken(FailedPrecondition):
    """Memory was plugged in, and the guest refuses it or does not answer. It stays in the VM."""


class VmSpec(Value):
    """The machine to make. `kernel_params` are appended after the hypervisor's own. With a `snapshot`, which
    must be of the same machine, it does not boot but goes on from there. Memory and CPUs can be plugged in up to
    `max_memory_mib` and `max_vcpus`, none if these are not more than what it begins with.

    `netns` is where the VMM runs: the path of a network namespace, "" for a new one of its own, None for the
    caller's."""

    name: str
    run_dir: Path
    kernel: Path
    initrd: Path
    kernel_params: tuple[str, ...]
    memory_mib: int
    vcpus: int
    accelerator: Accelerator = "auto"
    snapshot: Snapshot | None = None
    netns: str | None = None
    max_memory_mib: int = 0
    max_vcpus: int = 0


class Fingerprint(Value):
    """What decides whether a snapshot fits a VM: the machine in words (with the host's CPU if the guest sees it)
    and the files it is made of, the VMM's program included."""

    words: tuple[str, ...]
    files: tuple[Path, ...]


class VhostUserVsock(Value):
    """A vsock device whose backend holds the other end of `fd`, a connected AF_UNIX stream socket.

    `fd` stays the caller's; the hypervisor duplicates it.
    """

    id: str
    fd: int


class VhostUserFs(Value):
    """A virtiofs device named `tag`, whose daemon listens on the Unix socket `socket`."""

    id: str
    tag: str
    socket: Path


class VirtioNet(Value):
    """A NIC with address `mac`; `fd` is a tap with packet headers (IFF_VNET_HDR). It stays the caller's."""

    id: str
    fd: int
    mac: str


Device = VhostUserVsock | VhostUserFs | VirtioNet


class Disk(Value):
    """A block device or disk image of the host's. `id` has 20 characters at most: the guest sees it as the disk's
    serial number."""

    id: str
    path: Path
    read_only: bool


class VmExit(Value):
    """How the VM's process ended: `status` as waitpid gives it decoded (negative = signal), and why in words:
    the reason QMP gave, the last lines of the VMM's stderr and of the guest's console."""

    status: int
    reason: str


class Hypervisor(Protocol):
    """One VM. Methods raise `errors.ShimError`; after a failure of `start` nothing is left running."""

    @property
    def pid(self) -> int:
        """Host pid of the VMM process. Raises FailedPrecondition before `start`."""

    def fingerprint(self, spec: VmSpec) -> Fingerprint:
        """Of the VM that `start` would make, also before `start`."""

    async def start(self, spec: VmSpec) -> None:
        """Launch the VMM with the VM's CPUs stopped, its control channel ready and its snapshot loaded. Raises
        SnapshotRefused or SnapshotUnusable over the snapshot, and nothing else over it."""

    async def add_device(self, device: Device) -> None:
        """Plug in a device. Allowed before and after `resume`."""

    async def add_disk(self, disk: Disk) -> str:
        """Plug in a disk; where the guest finds it, as a PCI path in Kata's form: two hexadecimal digits for the
        slot of each bridge from the root bus on and of the device, with "/" between. NotFound names a path that is
        not there."""

    async def remove_disk(self, disk_id: str) -> None:
        """Take it out again, which the guest has to agree to."""

    async def add_memory(self, memory_mib: int) -> None:
        """Plug in memory, a multiple of 128 MiB, for good; returns when the guest uses it, which has to run. NotTaken
        if it does not. When the VMM refuses it, nothing of it is left: ResourceExhausted if that is because of how
        many pieces there are already."""

    async def add_vcpu(self) -> None:
        """Plug in a CPU for good, which the guest still has to put to use. ResourceExhausted if all are there."""

    async def resume(self) -> None:
        """Let the CPUs run."""

    async def console_line(self, text: str) -> None:
        """Until the guest's console has printed a line that contains `text`, or the VMM has ended."""

    async def save(self, snapshot: Snapshot) -> None:
        """Stop the CPUs for good and write the VM to two new files. Only without devices."""

    async def wait(self) -> VmExit:
        """Until the VMM process has ended; any number of callers, also afterwards."""

    async def stop(self, timeout_s: float = 3.0) -> VmExit:
        """Ask the VMM to quit, then kill it. Idempotent; returns when it is reaped."""
