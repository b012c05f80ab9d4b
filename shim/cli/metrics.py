"""`kata-py metrics`: Prometheus' text format (exposition format 0.0.4), of all sandboxes or of one.

A shim that does not answer costs its own samples and makes kata_py_sandbox_up 0, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import click

from shim.cli import sandboxes
from shim.cli.sandboxes import Sandbox
from shim.cli.table import as_json, echo_json

Sample = tuple[str, Mapping[str, str], float]

# name: type, help
_FAMILIES = {
    "sandboxes": ("gauge", "Sandboxes on this host, by state."),
    "sandbox_up": ("gauge", "1 if the shim answers and the VM runs."),
    "sandbox_info": ("gauge", "Always 1; where the VM came from and who serves it."),
    "sandbox_start_seconds": ("gauge", "From the launch of the VM until the sandbox was up."),
    "sandbox_vm_memory_bytes": ("gauge", "The VM's size."),
    "sandbox_vm_cpus": ("gauge", "The VM's CPUs."),
    "process_memory_bytes": ("gauge", "Proportional share (PSS) of a process of the sandbox on the host."),
    "process_cpu_seconds_total": ("counter", "CPU time of a process of the sandbox on the host."),
    "container_processes": ("gauge", "Processes that containerd knows in a container, by state."),
    "container_cpu_seconds_total": ("counter", "CPU time of a container in the guest."),
    "container_memory_bytes": ("gauge", "Memory of a container in the guest."),
    "container_pids": ("gauge", "Processes and threads of a container in the guest."),
    "stream_bytes_total": ("counter", "Bytes of a process's stdio, by direction."),
    "stream_stalls_total": ("counter", "How often the host's end of a stream was full."),
}
_STATES = ("new", "booting", "up", "dead", "silent", "no shim")


@click.command("metrics")
@sandboxes.optional_argument
@sandboxes.namespace_option
@as_json
def metrics_command(sandbox: str | None, namespace: str | None, *, as_json: bool) -> None:
    """Print metrics in Prometheus' text format, of one sandbox or of all.

    For node_exporter's textfile collector, for instance.
    """
    records = [sandboxes.pick(sandbox, namespace)] if sandbox else sandboxes.records()
    found = sandboxes.look(
        (item for item in records if namespace in (None, item.namespace)), streams=True, usage=True
    )
    samples = [*(() if sandbox else _totals(found)), *(sample for item in found for sample in _samples(item))]
    if as_json:
        echo_json(
            [{"name": f"kata_py_{name}", "labels": labels, "value": value} for name, labels, value in samples]
        )
    else:
        click.echo(exposition(samples), nl=False)
    for item in found:
        if item.problem:
            click.echo(f"{item.record.sandbox_id}: {item.problem}", err=True)


def exposition(samples: Iterable[Sample]) -> str:
    """Samples grouped by their families, as the format demands."""
    by_name: dict[str, list[str]] = {}
    for name, labels, value in samples:
        inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels.items())
        number = f"{value:.15g}"
        by_name.setdefault(name, []).append(f"kata_py_{name}{{{inside}}} {number}\n")
    text = ""
    for name, (kind, about) in _FAMILIES.items():
        if name in by_name:
            text += f"# HELP kata_py_{name} {about}\n# TYPE kata_py_{name} {kind}\n{''.join(by_name[name])}"
    return text


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _totals(found: list[Sandbox]) -> Iterator[Sample]:
    for state in _STATES:
        yield "sandboxes", {"state": state}, sum(item.state == state for item in found)


def _samples(item: Sandbox) -> Iterator[Sample]:
    own = {"namespace": item.record.namespace, "sandbox": item.record.sandbox_id}
    yield "sandbox_up", own, item.state == "up"
    for member in item.members:
        labels = {**own, "role": member.role}
        yield "process_memory_bytes", labels, member.memory
        yield "process_cpu_seconds_total", labels, member.cpu_s
    live = item.live
    if live is None:
        return
    yield "sandbox_info", {**own, "origin": live.origin, "version": live.version}, 1
    if live.up_s:
        yield "sandbox_start_seconds", own, live.up_s
    yield "sandbox_vm_memory_bytes", own, live.memory_mib << 20
    yield "sandbox_vm_cpus", own, live.vcpus
    for container in live.containers:
        labels = {**own, "container": container.id}
        states = [process.state for process in container.processes]
        for state in sorted(set(states)):
            yield "container_processes", {**labels, "state": state}, states.count(state)
        if container.id in item.usage:
            used = item.usage[container.id]
            yield "container_cpu_seconds_total", labels, used.cpu_s
            yield "container_memory_bytes", labels, used.memory
            yield "container_pids", labels, used.pids
        for process in container.processes:
            for stream in process.streams:
                which = {**labels, "exec": process.exec_id, "stream": stream.name}
                yield "stream_bytes_total", {**which, "direction": "from_guest"}, stream.from_guest_bytes
                yield "stream_bytes_total", {**which, "direction": "to_guest"}, stream.to_guest_bytes
                yield "stream_stalls_total", which, stream.stalls
