"""The RPCs: `grpc.AgentService`, `grpc.Health` and our own `kata_py.guest.Guest` over the sandbox. Each takes and gives
decoded messages.

An RPC that stands here is implemented; all others of the service answer Unimplemented.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping

from shim import errors
from shim.guest import hotplug, network, stats, syscall
from shim.guest.forward import PortForward
from shim.guest.sandbox import Sandbox, verify_id
from shim.guest.spec import resources_from_proto
from shim.guest.stdio import Stdio
from shim.ttrpc.server import current_call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shim.guest.console import DebugConsole, Session

    Message = Mapping[str, Any]
    Handler = Callable[[Message], Awaitable[Message]]

AGENT_VERSION = "4.1.0-py"
_SERVING = 1
# The longest wait for a passed stream by an RPC that has no deadline.
_CLAIM_S = 10.0
_POWER_OFF_DELAY_S = 0.1

_STORAGE_DRIVERS = ["virtio-fs", "overlayfs", "bind", "watchable-bind", "ephemeral", "local", "blk"]
_NOTHING: Message = {}


class Service:
    """`ready` is awaited before the first RPC that needs devices or crun."""

    def __init__(
        self,
        sandbox: Sandbox,
        ports: PortForward,
        console: DebugConsole | None = None,
        *,
        ready: Callable[[], Awaitable[None]],
        load_module: Callable[[str, str], None],
        power_off: Callable[[], None],
    ) -> None:
        self._sandbox, self._ports, self._console = sandbox, ports, console
        self._ready, self._load_module, self._power_off = ready, load_module, power_off

    def methods(self) -> dict[str, dict[str, Handler]]:
        """Service name -> RPC name -> handler."""
        agent = [
            self.CreateSandbox,
            self.DestroySandbox,
            self.CreateContainer,
            self.StartContainer,
            self.RemoveContainer,
            self.ExecProcess,
            self.SignalProcess,
            self.WaitProcess,
            self.PauseContainer,
            self.ResumeContainer,
            self.StatsContainer,
            self.UpdateContainer,
            self.TtyWinResize,
            self.CloseStdin,
            self.WriteStdin,
            self.ReadStdout,
            self.ReadStderr,
            self.GetGuestDetails,
            self.CopyFile,
            self.OnlineCPUMem,
            self.SetGuestDateTime,
            self.ReseedRandomDev,
            self.GetOOMEvent,
            self.UpdateInterface,
            self.UpdateRoutes,
            self.AddARPNeighbors,
            self.ListInterfaces,
            self.ListRoutes,
        ]
        ours = [self.ListProcesses, self.ForwardPort, self.SetLimits, self.ResizeConsole, self.WaitConsole]
        return {
            "grpc.AgentService": {method.__name__: method for method in agent},
            "grpc.Health": {"Check": self.Check, "Version": self.Version},
            "kata_py.guest.Guest": {method.__name__: method for method in ours},
        }

    async def Check(self, _request: Message) -> Message:
        return {"status": _SERVING}

    async def Version(self, _request: Message) -> Message:
        return {"grpc_version": "0.0.1", "agent_version": AGENT_VERSION}

    async def CreateSandbox(self, request: Message) -> Message:
        await self._ready()
        for module in request.get("kernel_modules", []):
            self._load_module(module.get("name", ""), " ".join(module.get("parameters", [])))
        await self._sandbox.create(request)
        return _NOTHING

    async def DestroySandbox(self, _request: Message) -> Message:
        await self._sandbox.destroy()
        # The answer has to leave first.
        asyncio.get_running_loop().call_later(_POWER_OFF_DELAY_S, self._power_off)
        return _NOTHING

    async def CreateContainer(self, request: Message) -> Message:
        await self._ready()
        await self._sandbox.create_container(request, _claim_s())
        return _NOTHING

    async def StartContainer(self, request: Message) -> Message:
        await self._sandbox.container(_container_id(request)).start()
        return _NOTHING

    async def RemoveContainer(self, request: Message) -> Message:
        await self._sandbox.remove_container(_container_id(request), request.get("timeout", 0))
        return _NOTHING

    async def ExecProcess(self, request: Message) -> Message:
        verify_id(_container_id(request))
        await self._sandbox.exec_process(request, _claim_s())
        return _NOTHING

    async def SignalProcess(self, request: Message) -> Message:
        container = self._sandbox.container(_container_id(request))
        container.signal(request.get("exec_id", ""), request.get("signal", 0))
        return _NOTHING

    async def WaitProcess(self, request: Message) -> Message:
        container = self._sandbox.container(_container_id(request))
        return {"status": await container.process(request.get("exec_id", "")).wait()}

    async def PauseContainer(self, request: Message) -> Message:
        await self._sandbox.container(_container_id(request)).pause()
        return _NOTHING

    async def ResumeContainer(self, request: Message) -> Message:
        await self._sandbox.container(_container_id(request)).resume()
        return _NOTHING

    async def StatsContainer(self, request: Message) -> Message:
        return stats.container_stats(self._sandbox.container(_container_id(request)).cgroup)

    async def UpdateContainer(self, request: Message) -> Message:
        container = self._sandbox.container(_container_id(request))
        await container.update(resources_from_proto(request.get("resources", {})))
        return _NOTHING

    async def SetLimits(self, request: Message) -> Message:
        await self._sandbox.container(_container_id(request)).set_limits(request.get("files", {}))
        return _NOTHING

    async def ListProcesses(self, request: Message) -> Message:
        processes = self._sandbox.container(_container_id(request)).processes()
        return {"processes": [{"pid": pid, "exec_id": exec_id} for pid, exec_id in processes]}

    def _stdio(self, request: Message) -> Stdio:
        container = self._sandbox.container(_container_id(request))
        return container.process(request.get("exec_id", "")).stdio

    async def TtyWinResize(self, request: Message) -> Message:
        self._stdio(request).resize(request.get("row", 0), request.get("column", 0))
        return _NOTHING

    async def CloseStdin(self, request: Message) -> Message:
        self._stdio(request).end_stdin()
        return _NOTHING

    async def WriteStdin(self, request: Message) -> Message:
        return {"len": await self._stdio(request).write(request.get("data", b""))}

    async def ReadStdout(self, request: Message) -> Message:
        return {"data": await self._stdio(request).read(1, request.get("len", 0))}

    async def ReadStderr(self, request: Message) -> Message:
        return {"data": await self._stdio(request).read(2, request.get("len", 0))}

    async def GetGuestDetails(self, request: Message) -> Message:
        agent = {
            "version": AGENT_VERSION,
            "init_daemon": os.getpid() == 1,
            "storage_handlers": _STORAGE_DRIVERS,
            "supports_seccomp": True,
        }
        memory = _memory_hotplug()
        wanted = {
            "mem_block_size_bytes": bool(request.get("mem_block_size")),
            "support_mem_hotplug_probe": bool(request.get("mem_hotplug_probe")),
        }
        return {"agent_details": agent, **{name: memory[name] for name, wants in wanted.items() if wants}}

    async def CopyFile(self, request: Message) -> Message:
        from shim.guest.copyfile import copy_file  # our own shim never asks for it

        copy_file(request)
        return _NOTHING

    async def OnlineCPUMem(self, request: Message) -> Message:
        await hotplug.use_cpus(request.get("nb_cpus", 0))
        if not request.get("cpu_only"):
            hotplug.use_memory()
        return _NOTHING

    async def SetGuestDateTime(self, request: Message) -> Message:
        nanoseconds = request.get("Sec", 0) * 1_000_000_000 + request.get("Usec", 0) * 1000
        if nanoseconds <= 0:
            raise errors.InvalidArgument("a time before 1970")
        time.clock_settime_ns(time.CLOCK_REALTIME, nanoseconds)
        return _NOTHING

    async def ReseedRandomDev(self, request: Message) -> Message:
        data = request.get("data", b"")
        if not data:
            raise errors.InvalidArgument("no entropy given")
        syscall.add_entropy(data)
        return _NOTHING

    async def GetOOMEvent(self, _request: Message) -> Message:
        return {"container_id": await self._sandbox.oom_events.get()}

    async def UpdateInterface(self, request: Message) -> Message:
        await self._ready()
        interface: Message = request.get("interface", {})
        await network.update_interface(interface)
        return interface

    async def UpdateRoutes(self, request: Message) -> Message:
        network.update_routes(request.get("routes", {}).get("Routes", []))
        return {"Routes": network.routes()}

    async def AddARPNeighbors(self, request: Message) -> Message:
        network.add_neighbours(request.get("neighbors", {}).get("ARPNeighbors", []))
        return _NOTHING

    async def ListInterfaces(self, _request: Message) -> Message:
        return {"Interfaces": network.interfaces()}

    async def ListRoutes(self, _request: Message) -> Message:
        return {"Routes": network.routes()}

    def _shell(self, request: Message) -> Session:
        if self._console is None:
            raise errors.FailedPrecondition("there is no debug console")
        return self._console.session(request.get("host_port", 0))

    async def ResizeConsole(self, request: Message) -> Message:
        self._shell(request).resize(request.get("rows", 0), request.get("columns", 0))
        return _NOTHING

    async def WaitConsole(self, request: Message) -> Message:
        return {"status": await self._shell(request).wait()}

    async def ForwardPort(self, request: Message) -> Message:
        return {"vsock_port": await self._ports.connect(request.get("port", 0))}


def _memory_hotplug() -> dict[str, int]:
    """The kernel's unit of memory hotplug in bytes (0 without it), and whether it wants to be told of it."""
    directory = "/sys/devices/system/memory"
    try:
        with open(f"{directory}/block_size_bytes") as file:
            size = int(file.read(), 16)
    except FileNotFoundError:
        size = 0
    return {"mem_block_size_bytes": size, "support_mem_hotplug_probe": os.path.exists(f"{directory}/probe")}


def _claim_s() -> float:
    """How long the current call may wait for its streams: to its deadline, so that it can still say why."""
    call = current_call.get(None)
    if call is None or call.deadline is None:
        return _CLAIM_S
    return max(0.0, call.deadline - asyncio.get_running_loop().time() - 0.05)


def _container_id(request: Message) -> str:
    return str(request.get("container_id", ""))
