"""What the shim tells `kata-py` of its sandbox. It only looks: nothing here waits for the guest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from shim.bootstrap.info import VERSION
from shim.config.model import Config, toml
from shim.pb.kata_py import introspect as pb
from shim.sandbox import Container, Process, Sandbox


class IntrospectService(pb.IntrospectBase):
    """`settings` are the sandbox's as they are known at the time."""

    def __init__(self, sandbox: Sandbox, settings: Callable[[], Config]) -> None:
        self._sandbox, self._settings = sandbox, settings

    async def sandbox(self, sandbox_request: pb.SandboxRequest) -> pb.SandboxResponse:
        machine, config = self._sandbox.machine, self._settings()
        response = pb.SandboxResponse(
            version=VERSION,
            state="new",
            memory_mib=config.memory_mib,
            vcpus=config.vcpus,
            settings=[
                pb.Setting(key, toml(value), config.origins.get(key, ""))
                for key, value in config.values().items()
            ],
        )
        if machine is not None:
            response.state = "dead" if machine.died.is_set() else "up" if machine.up_s else "booting"
            response.reason, response.up_s = machine.reason, machine.up_s
            response.memory_mib, response.vcpus = machine.size.memory_mib, machine.size.vcpus
            response.origin = "template" if machine.restores else "boot"
        response.containers = [
            await _container(item, streams=sandbox_request.streams)
            for item in list(self._sandbox.containers.values())
        ]
        return response


async def _container(container: Container, *, streams: bool) -> pb.Container:
    processes = [container.init, *container.execs.values()]
    return pb.Container(
        id=container.id,
        bundle=str(container.request.bundle),
        processes=await asyncio.gather(*(_process(item, streams=streams) for item in processes)),
    )


async def _process(process: Process, *, streams: bool) -> pb.Process:
    counters = await process.counters() if streams else {}
    return pb.Process(
        exec_id=process.ids.exec_id,
        state=process.state.name.lower(),
        streams=[pb.Stream(name, stat.rx, stat.tx, stat.stalls) for name, stat in counters.items()],
    )
