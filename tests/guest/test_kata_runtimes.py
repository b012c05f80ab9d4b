"""Our agent under Kata's own runtimes, played from their tables by a client that shares no code with us.

Below are a fake crun and sockets in the place of vsock; what is above is real: bytes on a socket, our ttrpc server, our
codec and tables, the RPCs.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from shim.guest import hotplug, syscall
from shim.guest.boot import parse_cmdline
from shim.guest.forward import PortForward
from shim.guest.reaper import Reaper
from shim.guest.runtime import Runtime
from shim.guest.sandbox import Sandbox
from shim.guest.schema import MESSAGES, SERVICES
from shim.guest.service import Service
from shim.guest.streams import Streams
from shim.log import Log
from shim.ttrpc.server import Server
from shim.ttrpc.service import from_schema
from tests.fakes.kata_runtime import SHARE, SHM_STORAGE, GoRuntime, RuntimeRs
from tests.fakes.kata_wire import KataWire, Status

from .loop import eventually, go
from .test_service import read_to_end

NOT_FOUND, ALREADY_EXISTS, UNIMPLEMENTED = 5, 6, 12


class Guest:
    """The agent as its program puts it together, on a socket."""

    def __init__(self, crun: str, directory: Path) -> None:
        self.directory = directory
        self.shared = f"{directory}/shared/"
        log = Log(2, "error")
        self.reaper = Reaper()
        self.reaper.install()
        self.streams = Streams(log)
        runtime = Runtime(self.reaper, crun, str(directory / "scratch"))
        self.sandbox = Sandbox(runtime, self.streams, log, base=str(directory / "base"))
        self.powered_off = asyncio.Event()
        service = Service(
            self.sandbox,
            PortForward(log),
            ready=lambda: asyncio.sleep(0),
            load_module=lambda _name, _parameters: None,
            power_off=self.powered_off.set,
        )
        services = service.methods().items()
        self.server = Server(
            [from_schema(name, MESSAGES, SERVICES[name], handlers) for name, handlers in services], log
        )
        self._wires: list[KataWire] = []

    async def wire(self, **options: int) -> KataWire:
        ours, theirs = socket.socketpair()
        await self.server.serve_connection(ours)
        self._wires.append(KataWire(theirs, **options))
        return self._wires[-1]

    async def runtime(self, kind: type[RuntimeRs], **options: int) -> RuntimeRs:
        runtime = kind(await self.wire(**options), self.shared)
        for container_id in ("c1", "c2"):
            os.makedirs(runtime.root(container_id), exist_ok=True)
        return runtime

    def passed(self, port: int) -> socket.socket:
        """The host's end of a stream that comes from its `port`."""
        ours, peer = socket.socketpair()
        for end in (ours, peer):
            end.setblocking(False)
        self.streams.arrive(port, ours)
        return peer

    def calls(self) -> list[str]:
        return (self.directory / "state" / "calls").read_text().splitlines()

    async def aclose(self) -> None:
        for wire in self._wires:
            await wire.aclose()
        await self.server.aclose()
        self.streams.close()
        self.reaper.uninstall()


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What CreateSandbox asks of the kernel, recorded. Three CPUs are plugged in, one is in use."""
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(syscall, "mount", lambda *args, **kwargs: asked.append((*args, *kwargs.values())))
    monkeypatch.setattr(syscall, "unmount", lambda *args: None)
    monkeypatch.setattr(syscall, "unshare", lambda flag: None)
    monkeypatch.setattr(syscall, "set_namespace", lambda fd: None)
    monkeypatch.setattr(socket, "sethostname", lambda name: asked.append(("hostname", name)))
    monkeypatch.setattr("shim.guest.sandbox.NAMESPACES", str(tmp_path / "ns"))
    cpus = tmp_path / "cpu"
    for number in (1, 2):
        (cpus / f"cpu{number}").mkdir(parents=True)
        (cpus / f"cpu{number}" / "online").write_text("0")
    (cpus / "online").write_text("0\n")
    monkeypatch.setattr(hotplug.use_cpus, "__defaults__", (str(cpus), 1.0))
    monkeypatch.setattr(hotplug.use_memory, "__defaults__", (str(tmp_path / "memory"),))
    return asked


Play = Callable[[Callable[[Guest], Coroutine[Any, Any, None]]], None]


@pytest.fixture
def play(crun: str, tmp_path: Path, kernel: list[tuple[Any, ...]]) -> Play:
    def run(scenario: Callable[[Guest], Coroutine[Any, Any, None]]) -> None:
        async def test() -> None:
            guest = Guest(crun, tmp_path)
            try:
                await scenario(guest)
            finally:
                await guest.aclose()

        go(test)

    return run


def storages(directory: Path) -> list[dict[int, Any]]:
    """The two that every sandbox has, mounted where a test may make directories."""
    return [{**SHARE, 6: f"{directory}/share/"}, {**SHM_STORAGE, 6: f"{directory}/shm"}]


@pytest.mark.parametrize("kind", [RuntimeRs, GoRuntime])
def test_a_sandbox_is_made_as_either_runtime_asks(
    play: Play, tmp_path: Path, kernel: list[tuple[Any, ...]], kind: type[RuntimeRs]
) -> None:
    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(kind)
        details = await runtime.start_sandbox("pod1", storages(tmp_path))
        agent = details[2][0]
        assert b"virtio-fs" in agent
        assert b"ephemeral" in agent
        assert ("hostname", "pod") in kernel
        assert ("kataShared", f"{tmp_path}/share", "virtiofs", syscall.MS_NODEV, "") in kernel
        shm = next(call for call in kernel if call[0] == "shm")
        assert shm[1:3] == (f"{tmp_path}/shm", "tmpfs")
        assert shm[4] == "mode=1777,size=67108864"
        resolv_conf = tmp_path / "base" / "sandbox" / "resolv.conf"
        if kind is RuntimeRs:
            assert resolv_conf.read_text() == "search example.org\nnameserver 192.0.2.53\n"
        assert runtime.oom is not None
        assert not runtime.oom.done(), "GetOOMEvent answers when there is one"
        guest.sandbox.oom_events.put_nowait("c1")
        assert await runtime.oom == {1: [b"c1"]}

    play(scenario)


@pytest.mark.parametrize("pieces", [1, 1 << 20])
def test_runtime_rs_with_passed_streams(play: Play, pieces: int) -> None:
    """Dragonball's way, also with every byte of every request in a write of its own."""

    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(RuntimeRs, pieces=pieces)
        stdin, out, err = (guest.passed(port) for port in (1 << 30, (1 << 30) + 1, (1 << 30) + 2))
        script = "cat; echo err >&2; exit 7"
        await runtime.create("c1", ["sh", "-c", script], [1 << 30, (1 << 30) + 1, (1 << 30) + 2])
        exit_code = await runtime.start("c1")
        await asyncio.get_running_loop().sock_sendall(stdin, b"input")
        stdin.shutdown(socket.SHUT_WR)  # CloseIO is no RPC: the stream's own end
        assert await read_to_end(out) == b"input"
        assert await read_to_end(err) == b"err\n"
        assert await exit_code == 7
        stdin.close()
        await runtime.after_exit("c1")
        assert [call.split()[-1] for call in guest.calls()] == ["c1"] * 3, "create, start, delete"
        with pytest.raises(Status) as gone:
            await runtime.wait("c1")
        assert gone.value.code == NOT_FOUND

    play(scenario)


def test_runtime_rs_finds_its_exec_by_containerds_id_with_a_terminal(play: Play) -> None:
    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(RuntimeRs)
        await runtime.create("c1", ["sleep", "100"])
        init = await runtime.start("c1")
        terminal_in, terminal_out = guest.passed(71), guest.passed(72)
        script = "read line; stty size; echo got $line"
        done = await runtime.exec("c1", "exec-1", ["sh", "-c", script], [71, 72, 0], size=(33, 77))
        await asyncio.get_running_loop().sock_sendall(terminal_in, b"typed\n")
        said = await read_to_end(terminal_out)
        assert b"33 77" in said
        assert b"got typed" in said
        assert await done == 0
        terminal_in.close()
        await runtime.wire.call("SignalProcess", {1: "c1", 3: 15})  # "" is the init process
        assert await init == 143
        await runtime.after_exit("c1")

    play(scenario)


def test_runtime_rs_may_send_a_request_before_its_streams_have_come(play: Play) -> None:
    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(RuntimeRs)
        creating = asyncio.create_task(runtime.create("c1", ["echo", "late"], [0, 81, 0]))
        await eventually(lambda: 81 in guest.streams._wanted)
        out = guest.passed(81)
        await creating
        exit_code = await runtime.start("c1")
        assert await read_to_end(out) == b"late\n"
        assert await exit_code == 0
        await runtime.after_exit("c1")

    play(scenario)


@pytest.mark.parametrize("kind", [RuntimeRs, GoRuntime])
@pytest.mark.parametrize("flags", [0, 1])
def test_either_runtime_with_stdio_by_rpc(play: Play, kind: type[RuntimeRs], flags: int) -> None:
    """No ports at all: reads hang on the same connection while input is written. A request may say that no more
    follows (flag remote_closed)."""
    data = bytes(range(256)) * 1200

    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(kind, flags=flags)
        init_id = "c1" if kind is GoRuntime else ""
        await runtime.create("c1", ["sh", "-c", "cat; echo err >&2; exit 9"])
        exit_code = await runtime.start("c1")
        out = asyncio.create_task(runtime.read("c1", init_id))
        err = asyncio.create_task(runtime.read("c1", init_id, stderr=True))
        await runtime.write("c1", init_id, data)
        assert await out == data
        assert await err == b"err\n"
        assert await exit_code == 9
        await runtime.after_exit("c1")

    play(scenario)


def test_the_go_runtimes_pod_from_start_to_good_bye(play: Play, tmp_path: Path) -> None:
    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(GoRuntime)
        assert isinstance(runtime, GoRuntime)
        await runtime.start_sandbox("pod1", storages(tmp_path))
        exits = {}
        for container_id in ("c1", "c2"):
            await runtime.create(container_id, ["sleep", "100"])
            exits[container_id] = await runtime.start(container_id)
        token = "0f3d6c1e-3a39-4a1c-9f57-6f0a51e6e5d1"
        done = await runtime.exec("c2", token, ["sh", "-c", "echo from the exec; exit 3"])
        assert await runtime.read("c2", token) == b"from the exec\n"
        assert await done == 3
        await runtime.stop_sandbox(["c1", "c2"])
        assert [await code for code in exits.values()] == [137, 137]
        await guest.powered_off.wait()

    play(scenario)


def test_a_second_connection_serves_as_the_first(play: Play) -> None:
    """kata-agent-ctl, or a runtime that lost its connection and came back."""

    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(RuntimeRs)
        await runtime.create("c1", ["sh", "-c", "exit 4"])
        await runtime.wire.aclose()
        again = await guest.runtime(RuntimeRs)
        exit_code = await again.start("c1")
        assert await exit_code == 4
        await again.after_exit("c1")

    play(scenario)


def test_plugged_cpus_are_put_to_use(play: Play, tmp_path: Path) -> None:
    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(RuntimeRs)
        await runtime.create("c1", ["true"], cpus=2)
        assert [(tmp_path / "cpu" / name / "online").read_text() for name in ("cpu1", "cpu2")] == ["1", "0"]
        await runtime.after_exit("c1")

    play(scenario)


def test_errors_have_the_codes_that_runtimes_look_at(play: Play) -> None:
    async def scenario(guest: Guest) -> None:
        runtime = await guest.runtime(RuntimeRs)

        async def code(method: str, request: dict[int, Any]) -> int:
            with pytest.raises(Status) as error:
                await runtime.wire.call(method, request)
            return error.value.code

        assert await code("StartContainer", {1: "c1"}) == NOT_FOUND
        assert await code("WaitProcess", {1: "c1"}) == NOT_FOUND
        assert await code("ResizeVolume", {1: "/v", 2: 1}) == UNIMPLEMENTED
        assert await code("SetPolicy", {1: "package x"}) == UNIMPLEMENTED
        assert await code("NoSuchThing", {}) == UNIMPLEMENTED
        await runtime.create("c1", ["sleep", "100"])
        assert await code("WriteStdin", {1: "c1", 2: "no such exec", 3: b"x"}) == NOT_FOUND
        with pytest.raises(Status) as twice:
            await runtime.create("c1", ["true"])
        assert twice.value.code == ALREADY_EXISTS
        await runtime.after_exit("c1")

    play(scenario)


def test_the_kernel_command_line_of_either_runtime_is_understood() -> None:
    """Their parameters that are not ours to obey are no reason to fail."""
    line = (
        "reboot=k panic=1 systemd.unit=kata-containers.target agent.log_vport=1025 agent.log=debug "
        "agent.debug_console agent.debug_console_vport=1026 agent.passfd_listener_port=1027 "
        "agent.cdh_api_timeout=50 agent.container_pipe_size=65536"
    )
    parameters = parse_cmdline(line)
    assert parameters["passfd_listener_port"] == "1027"
    assert parameters["container_pipe_size"] == "65536"
    assert parameters["debug_console"] == ""
