"""`kata-py ps`: the sandboxes of this host, and what is in them."""

from __future__ import annotations

from typing import Any

import click

from shim.cli import sandboxes
from shim.cli.sandboxes import Sandbox
from shim.cli.table import as_json, echo_json, mib, table

_COLUMNS = (
    ("SANDBOX", 23),
    ("NAMESPACE", 12),
    ("SHIM", -9),
    ("VM", -9),
    ("MEMORY", -10),
    ("FROM", 9),
    ("STATE", 9),
)
_STREAM_COLUMNS = (("PROCESS", 34), ("STREAM", 7), ("FROM GUEST", -15), ("TO GUEST", -15), ("STALLS", -9))


@click.command("ps")
@sandboxes.optional_argument
@sandboxes.namespace_option
@click.option("--io", "streams", is_flag=True, help="What has gone through each process's stdio, in bytes.")
@as_json
def ps_command(sandbox: str | None, namespace: str | None, *, streams: bool, as_json: bool) -> None:
    """List sandboxes and their containers: pids, memory, and whether the VM came from a template or a boot.

    MEMORY is what shim, VM, vsock device and file server take of the host's memory.
    """
    if sandbox:
        records = [sandboxes.pick(sandbox, namespace)]
    else:
        records = [item for item in sandboxes.records() if namespace in (None, item.namespace)]
    found = sandboxes.look(records, streams=streams or as_json)
    if as_json:
        echo_json([_as_json(item) for item in found])
        return
    click.echo(
        _streams(found) if streams else table(_COLUMNS, [row for item in found for row in _rows(item)])
    )
    for item in found:
        if item.problem:
            click.echo(f"{item.record.sandbox_id}: {item.problem}", err=True)
        elif item.live is not None and item.live.reason:
            click.echo(f"{item.record.sandbox_id}: {item.live.reason}", err=True)


def _rows(item: Sandbox) -> list[list[object]]:
    record, live = item.record, item.live
    first: list[object] = [record.sandbox_id, record.namespace, item.pid("daemon") or "-"]
    first += [
        item.pid("hypervisor") or "-",
        mib(item.memory),
        (live.origin if live else "") or "-",
        item.state,
    ]
    rows = [first]
    if live is None:
        return [*rows, *(_container_row(name, "unknown") for name in record.containers)]
    for container in live.containers:
        init, *execs = container.processes
        more = f" + {len(execs)} exec{'s' if len(execs) > 1 else ''}" if execs else ""
        rows.append(_container_row(container.id, init.state, more))
    return rows


def _container_row(name: str, state: str, more: str = "") -> list[object]:
    return [f"  {name}", more.strip(), "", "", "", "", state]


def _streams(found: list[Sandbox]) -> str:
    rows = []
    for item in found:
        for container in item.live.containers if item.live else ():
            for process in container.processes:
                name = f"{container.id}/{process.exec_id}" if process.exec_id else container.id
                rows += [
                    [name, stream.name, stream.from_guest_bytes, stream.to_guest_bytes, stream.stalls]
                    for stream in process.streams
                ]
    return table(_STREAM_COLUMNS, rows)


def _as_json(item: Sandbox) -> dict[str, Any]:
    live = item.live
    containers: list[dict[str, Any]]
    if live is None:
        containers = [{"id": name} for name in item.record.containers]
    else:
        containers = [
            {
                "id": container.id,
                "bundle": container.bundle,
                "processes": [
                    {
                        "exec_id": process.exec_id,
                        "state": process.state,
                        "streams": {
                            stream.name: {
                                "from_guest_bytes": stream.from_guest_bytes,
                                "to_guest_bytes": stream.to_guest_bytes,
                                "stalls": stream.stalls,
                            }
                            for stream in process.streams
                        },
                    }
                    for process in container.processes
                ],
            }
            for container in live.containers
        ]
    return {
        "sandbox": item.record.sandbox_id,
        "namespace": item.record.namespace,
        "state": item.state,
        "problem": item.problem or (live.reason if live else ""),
        "origin": live.origin if live else None,
        "up_s": live.up_s if live else None,
        "memory_mib": live.memory_mib if live else None,
        "vcpus": live.vcpus if live else None,
        "run_dir": item.record.run_dir,
        "processes": [
            {"role": member.role, "pid": member.pid, "memory_bytes": member.memory, "cpu_s": member.cpu_s}
            for member in item.members
        ],
        "containers": containers,
    }
