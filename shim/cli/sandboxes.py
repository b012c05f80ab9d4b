"""The sandboxes of this host: what their records on disk say, what their shims say, what the kernel says.

A record is there as long as something may be left of a sandbox. Its shim may be dead or hang, so every shim is
asked with a time limit, all at once, and what it has not answered is missing from the result and said so.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

import click
import psutil

from shim.errors import DataLoss, InvalidArgument, NotFound, PermissionDenied, ShimError
from shim.introspect.client import ShimClient
from shim.introspect.usage import Usage
from shim.pb.kata_py.introspect import SandboxResponse
from shim.record import Process, Record, place
from shim.value import Value

TIMEOUT_S = 2.0


class Member(Value):
    """A process of a sandbox that lives. `memory` is its proportional share (PSS) in bytes."""

    role: str
    pid: int
    memory: int
    cpu_s: float


@dataclass(slots=True)
class Sandbox:
    """`live` is what the shim said; None if it did not, and then `problem` says why."""

    record: Record
    members: list[Member] = field(default_factory=list)
    live: SandboxResponse | None = None
    problem: str = ""
    usage: dict[str, Usage] = field(default_factory=dict)  # by container, for those that run

    @property
    def state(self) -> str:
        if self.live is not None:
            return self.live.state
        daemon = self.record.daemon()
        return "silent" if daemon is not None and daemon.alive() else "no shim"

    def pid(self, role: str) -> int:
        """0 if there is no such process (any more)."""
        return next((member.pid for member in self.members if member.role == role), 0)

    @property
    def memory(self) -> int:
        return sum(member.memory for member in self.members)


def run_dirs() -> list[str]:
    """The directory of every sandbox of which there is something. PermissionDenied for anybody but root."""
    found: list[str] = []
    try:
        for namespace in _directories(place.RUN_DIR):
            with suppress(FileNotFoundError):  # its last sandbox has just gone
                found += _directories(namespace)
    except FileNotFoundError:
        return []
    except PermissionError as error:
        raise PermissionDenied(f"{error.filename}: only root may look at sandboxes") from error
    return sorted(found)


def _directories(path: str) -> list[str]:
    """Those below `path`; whatever else somebody has put there is no sandbox."""
    with os.scandir(path) as entries:
        return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def records() -> list[Record]:
    """Every sandbox there is, by namespace and id. One that `start` is only just making has no record yet; of one
    whose record makes no sense (another version's, say) only its directory is known."""
    found = []
    for run_dir in run_dirs():
        try:
            found.append(Record.load(run_dir))
        except NotFound:
            continue
        except DataLoss:
            found.append(Record.salvage(run_dir, ""))
    return sorted(found, key=lambda record: (record.namespace, record.sandbox_id))


def pick(word: str, namespace: str | None) -> Record:
    """The one sandbox that a word means: its id, the id of a container in it, or the beginning of its id.
    NotFound, or InvalidArgument that names the several."""
    known = [record for record in records() if namespace in (None, record.namespace)]
    where = f" in namespace {namespace}" if namespace else ""
    tests = (
        lambda record: record.sandbox_id == word,
        lambda record: word in record.containers,
        lambda record: word and record.sandbox_id.startswith(word),
    )
    for test in tests:
        found = [record for record in known if test(record)]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(f"{record.namespace}/{record.sandbox_id}" for record in found)
            raise InvalidArgument(f"sandbox {word!r} could be {names}: say more of it, or --namespace")
    raise NotFound(f"sandbox {word!r}: there is none{where} (kata-py ps lists what there is)")


def look(found: Iterable[Record], *, streams: bool = False, usage: bool = False) -> list[Sandbox]:
    """What is known of sandboxes now; takes little longer than TIMEOUT_S whatever their shims do."""
    sandboxes = [Sandbox(record) for record in found]

    async def ask_all() -> None:
        await asyncio.gather(*(_ask(sandbox, streams=streams, usage=usage) for sandbox in sandboxes))

    asyncio.run(ask_all())
    for sandbox in sandboxes:
        sandbox.members = [member for item in sandbox.record.processes if (member := _member(item))]
    return sandboxes


async def _ask(sandbox: Sandbox, *, streams: bool, usage: bool) -> None:
    record = sandbox.record
    daemon = record.daemon()
    if daemon is None:
        sandbox.problem = f"{record.run_dir}/record.json names no shim"
        return
    if not daemon.alive():
        sandbox.problem = f"its shim (pid {daemon.pid}) is dead"
        return
    try:
        client = await ShimClient.connect(record.address, TIMEOUT_S)
        try:
            sandbox.live = await client.sandbox(streams=streams)
            for container in sandbox.live.containers if usage else ():
                if container.processes[0].state in ("running", "paused"):
                    sandbox.usage[container.id] = await client.usage(container.id)
        finally:
            await client.aclose()
    except ShimError as error:
        what = "does not answer" if sandbox.live is None else "does not tell what its containers use"
        sandbox.problem = f"its shim (pid {daemon.pid}) {what}: {error}"


def _member(process: Process) -> Member | None:
    if not process.alive():
        return None
    try:
        found = psutil.Process(process.pid)
        times = found.cpu_times()
        return Member(process.role, process.pid, found.memory_full_info().pss, times.user + times.system)
    except psutil.Error:
        return None  # it has just ended


def _complete(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    try:
        return [item.sandbox_id for item in records() if item.sandbox_id.startswith(incomplete)]
    except (ShimError, OSError):
        return []


argument = click.argument("sandbox", shell_complete=_complete)
optional_argument = click.argument("sandbox", required=False, shell_complete=_complete)
namespace_option = click.option("-n", "--namespace", help="containerd's namespace, if the id is not enough.")
