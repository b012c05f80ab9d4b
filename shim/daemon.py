"""The shim daemon: the one module that names concrete drivers, and the process around them.

`start` has spawned us with a listening socket as fd 3, stderr on containerd's log FIFO, the bundle as working
directory, in a session of our own. We serve until Shutdown finds no container left, or a signal asks us to
stop; containerd may come and go meanwhile.

The guest boots while we are still starting: what would take longest to import (betterproto, grpclib) is imported
once QEMU runs."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import faulthandler
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shim import oci, vm
from shim.agent.api import Agent
from shim.bootstrap.args import Call, parse
from shim.bootstrap.start import LISTEN_FD
from shim.config.annotations import annotated
from shim.config.load import BODY_VARIABLE, VARIABLE, load
from shim.config.model import Config
from shim.errors import Internal, ShimError
from shim.hypervisor.qemu.driver import QemuHypervisor
from shim.log import Log
from shim.logfile import CONSOLE_LOG, SHIM_LOG, LogFile
from shim.network.netns import HostNamespaces, pod_path
from shim.record import Record, remove_run_dir, sandbox_dir
from shim.rootfs.share import VirtiofsShare
from shim.sandbox import Sandbox, TaskEvent
from shim.sandbox.bundle import load as load_bundle
from shim.sandbox.guest import Limits
from shim.sandbox.machine import Machine
from shim.sandbox.parts import Parts
from shim.template.store import Store
from shim.template.use import Templates
from shim.value import replace
from shim.vm_size import Size
from shim.vsock.api import AGENT_PORT, VsockDevice
from shim.vsock.process import VsockProcess

if TYPE_CHECKING:
    from shim.task.publisher import Publisher
    from shim.ttrpc.server import Server

# A shim without a container for so long will not get one.
_IDLE_S = 60.0
_LOG_FD = 2
_REMOVE_S = 5.0
# So that the answer to Shutdown is on its way before the process ends.
_ANSWER_S = 0.05
_CLONE_NEWNS, _MS_REC, _MS_SLAVE = 0x20000, 0x4000, 0x80000  # <linux/sched.h>, <sys/mount.h>


def main(argv: list[str]) -> int:
    """Serve one sandbox; the exit status. `argv` is without the program's name. What goes wrong is in the
    log."""
    call = parse(argv)
    bundle_dir = Path.cwd()
    listener = socket.socket(fileno=LISTEN_FD)
    path: str = listener.getsockname()
    config: Config | ShimError
    host_mounts = -1
    try:
        host_mounts = isolate_mounts()
        config = load()
    except ShimError as error:
        config = error  # the first Create says so: nobody sees more of us than that
    level = config.log_level if isinstance(config, Config) else "info"
    level = "debug" if call.debug and level != "trace" else level
    kept = LogFile(f"{sandbox_dir(call.namespace, call.id)}/{SHIM_LOG}")
    log = Log(_LOG_FD, level, kept, sandbox=call.id)
    try:
        os.chdir("/")  # the bundle is containerd's to remove
        daemon = Daemon(call, config, listener, log, host_mounts=host_mounts, kept=kept)
        asyncio.run(daemon.serve(bundle_dir))
    except Exception as error:
        log.error("the shim has failed", error=repr(error))
        # Children die with us and mounts vanish; what is on disk is for `delete`, which runs when nobody listens.
        with suppress(FileNotFoundError):
            os.unlink(path)
        return 1
    return 0


def isolate_mounts() -> int:
    """A mount namespace of our own, which takes what the host mounts and unmounts and gives nothing back:
    what we mount is gone with us. A descriptor of the namespace we came from."""
    host = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None):
        number = ctypes.get_errno()
        if number == errno.EINVAL:  # a chroot
            raise Internal("mount namespace: containerd's / is not a mount point")
        raise Internal(f"mount namespace: {os.strerror(number)}")
    return host


class Daemon:
    """Wires everything up and runs it."""

    def __init__(
        self,
        call: Call,
        config: Config | ShimError,
        listener: socket.socket,
        log: Log,
        *,
        host_mounts: int,
        kept: LogFile,
    ) -> None:
        self._call, self._config, self._log = call, config, log
        self._host_mounts = host_mounts
        self._listener = listener
        self._listener.setblocking(False)
        self._path: str = listener.getsockname()
        self._record = Record.create(call.namespace, call.id, f"unix://{self._path}")
        self._record.add_process("daemon", os.getpid())
        console = LogFile(f"{self._record.run_dir}/{CONSOLE_LOG}")
        self._console, self._kept = Log(None, keep=console), (kept, console)
        # The sandbox's own, once its first container is known.
        self._effective = config if isinstance(config, Config) else Config()
        self._done = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._publisher: Publisher | None = None
        self._sandbox = Sandbox(
            call.id, self._make_machine, self._record, self._publish, limits=_limits(config), log=log
        )

    async def serve(self, bundle_dir: Path) -> None:
        """Until the sandbox is shut down, by containerd or a signal. Nothing of it is left then.

        `bundle_dir` is the first container's: its spec, if there is one (the Sandbox API has none), begins the boot.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._dump_stacks)
        with suppress(ShimError):  # Create reads it again, and says what is wrong with it
            await self._sandbox.boot_early(load_bundle(bundle_dir))
        # Only a sandbox of the Sandbox API begins without a container.
        server = await self._serve_rpcs(sandbox_api=not (bundle_dir / "config.json").exists())
        loop.call_later(_IDLE_S, self._end_if_idle)
        self._log.info("the shim serves", pid=os.getpid())
        await self._done.wait()
        await server.aclose()

    async def _serve_rpcs(self, *, sandbox_api: bool) -> Server:
        from shim.introspect.service import IntrospectService
        from shim.task.options import RuntimeOptions
        from shim.task.publisher import Publisher
        from shim.task.service import SERVICES, TaskService
        from shim.ttrpc.server import Server
        from shim.ttrpc.service import from_grpclib

        address = os.environ.get("TTRPC_ADDRESS") or f"{self._call.address}.ttrpc"
        self._publisher = Publisher(address, self._call.namespace, self._log)
        given = RuntimeOptions(os.environ.get(VARIABLE, ""), os.environ.get(BODY_VARIABLE, ""))
        service = TaskService(self._sandbox, on_shutdown=self.stop, given=given)
        services = [from_grpclib(service, name) for name in SERVICES]
        services.append(from_grpclib(IntrospectService(self._sandbox, lambda: self._effective)))
        if sandbox_api:
            from shim.controller.service import SandboxService

            files = Path(self._record.run_dir, "etc")
            services.append(from_grpclib(SandboxService(self._sandbox, files, on_shutdown=self.stop)))
        server = Server(services, self._log, same_user=True)
        await server.serve(self._listener)
        return server

    def _publish(self, event: TaskEvent) -> None:
        assert self._publisher is not None  # events come of requests
        self._publisher.publish(event)

    def _end_if_idle(self) -> None:
        """containerd asks for a container right after it has started us, and for our end right after the last one's,
        or it has died."""
        left_s = _IDLE_S - self._sandbox.idle_s
        if left_s > 0:
            asyncio.get_running_loop().call_later(left_s, self._end_if_idle)
        else:
            self._log.warning("nobody asks for a container")
            self._begin_stop()

    async def stop(self) -> None:
        """End the sandbox, leave nothing behind and let `serve` return. Idempotent, and whoever asks meanwhile
        waits for the same end."""
        await asyncio.shield(self._begin_stop())

    def _begin_stop(self) -> asyncio.Task[None]:
        if self._stopping is None:
            # The socket goes first: a new container must not find a dying shim, however long the VM takes.
            with suppress(FileNotFoundError):
                os.unlink(self._path)
            self._stopping = asyncio.create_task(self._stop(), name="stop")
        return self._stopping

    async def _stop(self) -> None:
        try:
            await self._sandbox.aclose()
            await self._remove_traces()
        except Exception as error:
            self._log.error("the shim cannot end in order", error=repr(error))
            raise
        finally:  # what could not be ended in order dies with us, and `delete` does the rest
            asyncio.get_running_loop().call_later(_ANSWER_S, self._done.set)

    async def _remove_traces(self) -> None:
        if self._publisher is not None:
            await self._publisher.aclose()
        for file in self._kept:
            file.close()
        try:  # last: once it is gone its name may be another shim's
            remove_run_dir(self._record.run_dir, time.monotonic() + _REMOVE_S)
        except OSError as error:
            self._log.error("the run directory stays behind", error=error)
        self._log.info("the shim ends")

    def _on_signal(self, number: signal.Signals) -> None:
        self._log.info("stopping", signal=number.name)
        self._begin_stop()

    def _dump_stacks(self) -> None:
        """Where every task and thread stands, for whoever asks with SIGUSR1."""
        for task in asyncio.all_tasks():
            frames = [f"{frame.f_code.co_qualname}:{frame.f_lineno}" for frame in task.get_stack()]
            self._log.info("task", name=task.get_name(), at=" < ".join(reversed(frames)))
        faulthandler.dump_traceback(_LOG_FD)

    def _make_machine(self, spec: Mapping[str, Any], boots: bool) -> Machine:
        if isinstance(self._config, ShimError):
            raise self._config
        config = annotated(self._config, oci.section(spec, "annotations"), vm.host())
        base = Size(config.memory_mib, config.vcpus)
        config = self._effective = vm.sized(config, spec)
        netns = pod_path(oci.namespace_path(spec, "network"))
        run_dir = Path(self._record.run_dir)
        hypervisor = QemuHypervisor(self._log, config.hypervisor, self._console)
        parts = Parts(
            hypervisor=hypervisor,
            device=VsockProcess(_beside_us("kata-py-vsock"), run_dir, self._log, _LOG_FD),
            share=VirtiofsShare(run_dir, self._log, config.virtiofsd),
            connect_agent=lambda device, timeout_s: connect_agent(device, timeout_s, config.agent_s),
            network=HostNamespaces(_beside_us("kata-py-netns"), self._log),
        )
        wanted = vm.spec(config, self._call.id, run_dir, netns)
        # What a template lacks is plugged in: memory costs little, so there is only one with the settings' memory.
        saved = config.resized(base.memory_mib, config.vcpus)
        store = Store(config.template_dir, config.template_limit_mib)
        templates = Templates(store, self._log, lambda: self._create_template(saved))
        restored = None
        if not boots and config.template != "off":
            sizes = dict.fromkeys((config.vcpus, base.vcpus))
            specs = [replace(wanted, memory_mib=base.memory_mib, vcpus=vcpus) for vcpus in sizes]
            restored = templates.choose(hypervisor, *specs)
        chosen = restored or wanted
        return Machine(
            parts,
            chosen,
            self._record,
            base=base,
            least=Size(config.memory_mib, config.vcpus),
            port=config.stream_port,
            limits=_limits(config),
            log=self._log,
            reject_snapshot=lambda error: templates.reject(hypervisor, chosen, error),
        )

    def _create_template(self, config: Config) -> None:
        """By a program that outlives us and gives way to everybody, in the host's mount namespace: in ours it
        would keep what we have mounted."""
        program = _beside_us("kata-py")
        command = ["setsid", "--fork", "nsenter", f"--mount=/proc/self/fd/{self._host_mounts}"]
        command += ["nice", "-n", "19", str(program), "template", "create", "--background"]
        nothing = subprocess.DEVNULL
        done = subprocess.run(
            command,
            stdin=nothing,
            stdout=nothing,
            stderr=nothing,
            pass_fds=(self._host_mounts,),
            env={**os.environ, BODY_VARIABLE: config.to_toml()},
            check=False,
        )
        self._log.info("a template is being created", begun=done.returncode == 0)


def _limits(config: Config | ShimError) -> Limits:
    if isinstance(config, ShimError):
        return Limits()
    return Limits(
        boot_s=config.boot_s,
        stream_s=config.agent_s,
        drain_grace_s=config.drain_grace_s,
        drain_limit_s=config.drain_limit_s,
    )


async def connect_agent(device: VsockDevice, timeout_s: float, call_s: float) -> Agent:
    """The agent behind the device, retried for `timeout_s` while the guest boots; `call_s` for each call."""
    # Slow to import, and needed now: while the guest boots, not when it answers.
    from shim.agent.answer import MAX_ANSWER
    from shim.agent.pod import PodAgent
    from shim.ttrpc.channel import Channel

    connected = await device.connect(AGENT_PORT, timeout_s)
    return PodAgent(await Channel.connect(connected, MAX_ANSWER), call_s)


def _beside_us(name: str) -> Path:
    """A program that was installed with this one."""
    return Path(sys.argv[0]).resolve().parent / name
