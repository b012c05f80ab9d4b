"""The agent's program: boot as pid 1 if it is, then serve ttrpc on vsock port 1024 until the VM ends.

The order matters. A host that reaches the ttrpc port may use the passfd port at once. Both listen before the
vsock device has its driver: the host's request, which waits for that, is then never refused and needs no second
try. What the first connection does not need is done while the host is busy.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket
import sys

from shim.guest import boot, clock, network, syscall
from shim.guest.forward import PortForward
from shim.guest.loop import Loop
from shim.guest.reaper import Reaper
from shim.guest.runtime import Runtime, sealed_copy
from shim.guest.sandbox import Sandbox
from shim.guest.schema import MESSAGES, SERVICES
from shim.guest.service import Service
from shim.guest.stdio import PIPE_SIZE
from shim.guest.streams import Streams
from shim.log import Log
from shim.ttrpc.server import Server
from shim.ttrpc.service import from_schema

TTRPC_PORT = 1024
CRUN = "/usr/bin/crun"
SCRATCH = "/run/kata-py"
DEVICES = "/sys/bus/virtio/devices"
# Of the free memory, what is left to the kernel when the rest is taken for a moment, and the most that is taken: a
# boot leaves traces in no more, all of it would be allocated on the host, and of a large memory the kernel needs
# more to spare.
_SPARE, _MOST = 16 << 20, 512 << 20
# Six descriptors for each process with three streams. Containers whose spec sets no limit inherit it.
_OPEN_FILES = (65536, 1048576)


def listen(port: int) -> socket.socket:
    """A listening vsock socket. It outlives its device: one plugged in later is served as well."""
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(128)
    listener.setblocking(False)
    return listener


async def serve(
    listener: socket.socket,
    passfd_listener: socket.socket | None,
    parameters: dict[str, str],
    modules: list[str],
    log: Log,
    *,
    console_listener: socket.socket | None = None,
) -> None:
    """Serve for ever. `parameters` are the kernel command line's; `modules` are to be loaded beside."""
    reaper = Reaper()
    reaper.install()
    streams = Streams(log)
    if passfd_listener:
        streams.listen(passfd_listener)
    console = None
    if console_listener:
        from shim.guest.console import DebugConsole

        console = DebugConsole(reaper, log)
        console.listen(console_listener)
    runtime = Runtime(reaper, CRUN, SCRATCH)
    pipe_size = boot.number(parameters, "container_pipe_size", 0) or PIPE_SIZE
    prepared = asyncio.create_task(_prepare(runtime, modules, log))
    service = Service(
        Sandbox(runtime, streams, log, pipe_size=pipe_size),
        PortForward(log),
        console,
        ready=lambda: asyncio.shield(prepared),
        load_module=boot.load_by_name,
        power_off=syscall.power_off,
    )
    services = [
        from_schema(name, MESSAGES, SERVICES[name], handlers) for name, handlers in service.methods().items()
    ]
    server = Server(services, log)
    await server.serve(listener)
    log.info("agent ready", passfd_port=passfd_listener.getsockname()[1] if passfd_listener else 0)
    await prepared
    if not os.listdir(DEVICES):
        await settle(runtime)
        log.info("agent settled")
    await asyncio.get_running_loop().create_future()


async def _prepare(runtime: Runtime, modules: list[str], log: Log) -> None:
    """What the first container needs, one small step at a time so that calls are answered in between."""
    for path in modules:
        await asyncio.sleep(0)
        _load([path], log)
    await asyncio.sleep(0)
    network.loopback_up()
    network.trust_addresses()
    runtime.program = sealed_copy(CRUN)


async def settle(runtime: Runtime) -> None:
    """Without a device nobody can reach us: this VM is going to be a template. What happens once in a guest's
    life happens now, and free memory is zeros, which a template need not hold."""
    import mmap

    await runtime.version()
    gc.collect()
    gc.freeze()
    free = min(os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE - _SPARE, _MOST)
    mmap.mmap(-1, free, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE).close()


def _load(paths: list[str], log: Log) -> None:
    for path in paths:
        try:
            syscall.load_module(path)
        except OSError as error:
            log.warning("kernel module not loaded", module=path, error=error.strerror)


def main() -> None:
    """Entry point of the image's /init, and of kata-py-agent in an image with another init."""
    log = Log(2)
    try:
        if os.getpid() == 1:
            boot.leave_initramfs()
            boot.mount_filesystems()
            boot.open_standard_streams()
            os.environ.setdefault("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            resource.setrlimit(resource.RLIMIT_NOFILE, _OPEN_FILES)
            clock.choose(log)
        else:
            syscall.set_subreaper()
        with open("/proc/cmdline") as file:
            parameters = boot.parse_cmdline(file.read())
        if parameters.get("log") in ("debug", "trace"):
            log = Log(2, "debug")
        modules = boot.Modules()
        _load(modules.to_listen, log)
        passfd_port = boot.number(parameters, "passfd_listener_port", 0)
        passfd_listener = listen(passfd_port) if passfd_port else None
        listener = listen(TTRPC_PORT)
        _load(modules.to_be_reached, log)
        console_port = (
            boot.number(parameters, "debug_console_vport", 0) if "debug_console" in parameters else 0
        )
        console_listener = listen(console_port) if console_port else None
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(
                serve(
                    listener,
                    passfd_listener,
                    parameters,
                    modules.others,
                    log,
                    console_listener=console_listener,
                )
            )
    except BaseException as error:
        import traceback  # slow to import, and only needed to say good-bye

        log.error("agent ends", error=error, trace="".join(traceback.format_exception(error)))
        if os.getpid() == 1:
            syscall.power_off()
        sys.exit(1)


if __name__ == "__main__":
    main()
