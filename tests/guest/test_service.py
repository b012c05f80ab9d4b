"""The RPCs end to end in one process: a fake crun, real processes, sockets in the place of vsock."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from shim import errors
from shim.guest import syscall
from shim.guest.forward import PortForward
from shim.guest.reaper import Reaper
from shim.guest.runtime import Runtime
from shim.guest.sandbox import PASSFD_ANNOTATION, Sandbox
from shim.guest.schema import SERVICES
from shim.guest.service import Service
from shim.guest.streams import Streams
from shim.log import Log

from .loop import eventually, go

PASSED = {PASSFD_ANNOTATION: "true"}


class Agent:
    """The service and its surroundings."""

    def __init__(self, crun: str, directory: Path) -> None:
        self.directory = directory
        (directory / "root").mkdir(exist_ok=True)
        log = Log(2, "error")
        self.reaper = Reaper()
        self.reaper.install()
        self.streams = Streams(log)
        runtime = Runtime(self.reaper, crun, str(directory / "scratch"))
        self.sandbox = Sandbox(runtime, self.streams, log, base=str(directory / "base"))
        self.powered_off: list[bool] = []
        self.modules: list[tuple[str, str]] = []
        self._table = Service(
            self.sandbox,
            PortForward(log),
            ready=lambda: asyncio.sleep(0),
            load_module=lambda name, parameters: self.modules.append((name, parameters)),
            power_off=lambda: self.powered_off.append(True),
        ).methods()

    async def call(
        self, method: str, service: str = "grpc.AgentService", **request: Any
    ) -> Mapping[str, Any]:
        return await self._table[service][method](request)

    def spec(
        self, args: list[str], annotations: dict[str, str] | None = None, **process: Any
    ) -> dict[str, Any]:
        return {
            "Process": {"Args": args, **process},
            "Root": {"Path": str(self.directory / "root")},
            "Annotations": PASSED if annotations is None else annotations,
        }

    def stream(self, port: int) -> socket.socket:
        ours, peer = socket.socketpair()
        ours.setblocking(False)
        peer.setblocking(False)
        self.streams.arrive(port, ours)
        return peer

    async def run(self, container_id: str, args: list[str], **request: Any) -> None:
        spec = self.spec(args, request.pop("annotations", None), **request.pop("process", {}))
        await self.call("CreateContainer", container_id=container_id, OCI=spec, **request)
        await self.call("StartContainer", container_id=container_id)

    async def wait(self, container_id: str, exec_id: str = "") -> int:
        return int((await self.call("WaitProcess", container_id=container_id, exec_id=exec_id))["status"])

    def calls(self) -> list[str]:
        return (self.directory / "state" / "calls").read_text().splitlines()

    def leftovers(self) -> list[str]:
        found = [str(path) for name in ("base", "scratch") for path in (self.directory / name).rglob("*")]
        return found + [str(path) for path in (self.directory / "state").glob("*") if path.name != "calls"]

    def close(self) -> None:
        self.streams.close()
        self.reaper.uninstall()


async def read_to_end(peer: socket.socket) -> bytes:
    data = b""
    while chunk := await asyncio.get_running_loop().sock_recv(peer, 1 << 20):
        data += chunk
    peer.close()
    return data


@pytest.fixture
def play(crun: str, tmp_path: Path) -> Callable[[Callable[[Agent], Coroutine[Any, Any, None]]], None]:
    """Run a scenario against a fresh agent."""

    def run(scenario: Callable[[Agent], Coroutine[Any, Any, None]]) -> None:
        async def test() -> None:
            agent = Agent(crun, tmp_path)
            try:
                await scenario(agent)
            finally:
                agent.close()

        go(test)

    return run


Play = Callable[[Callable[[Agent], Coroutine[Any, Any, None]]], None]


def test_a_containers_life(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        out, err = agent.stream(7), agent.stream(8)
        script = "echo out; echo err >&2; exit 7"
        await agent.run("c1", ["sh", "-c", script], stdout_port=7, stderr_port=8)
        assert await agent.wait("c1") == 7
        assert await agent.wait("c1", "c1") == 7, "the init process is also named by the container's id"
        assert await read_to_end(out) == b"out\n"
        assert await read_to_end(err) == b"err\n"
        await agent.call("RemoveContainer", container_id="c1")
        assert agent.leftovers() == []
        with pytest.raises(errors.NotFound):
            await agent.wait("c1")

    play(scenario)


def test_the_process_waits_for_start(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.call("CreateContainer", container_id="c1", OCI=agent.spec(["true"]))
        waiting = asyncio.create_task(agent.call("WaitProcess", container_id="c1"))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        await agent.call("StartContainer", container_id="c1")
        assert (await waiting)["status"] == 0
        with pytest.raises(errors.FailedPrecondition):
            await agent.call("StartContainer", container_id="c1")
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_stdin_is_null_when_the_runtime_passes_streams_but_not_this_one(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        out = agent.stream(7)
        await agent.run("c1", ["cat"], annotations={}, stdout_port=7)
        assert await agent.wait("c1") == 0
        await agent.run("c2", ["cat"])
        assert await agent.wait("c2") == 0
        assert await read_to_end(out) == b""
        for container_id in ("c1", "c2"):
            await agent.call("RemoveContainer", container_id=container_id)

    play(scenario)


def test_without_ports_and_annotation_streams_go_by_rpc(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["cat"], annotations={})
        assert await agent.call("WriteStdin", container_id="c1", data=b"hello") == {"len": 5}
        assert await agent.call("ReadStdout", container_id="c1", len=100) == {"data": b"hello"}
        await agent.call("CloseStdin", container_id="c1")
        await agent.call("CloseStdin", container_id="c1")
        assert await agent.call("ReadStdout", container_id="c1", len=100) == {"data": b""}
        assert await agent.call("ReadStderr", container_id="c1", len=100) == {"data": b""}
        assert await agent.wait("c1") == 0
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_execs_have_ids_of_any_form_which_are_free_again_after_the_end(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        for turn in range(2):
            out = agent.stream(10 + turn)
            process = {"Args": ["sh", "-c", f"echo {turn}; exit {turn}"]}
            names = {"container_id": "c1", "exec_id": "../e x"}
            await agent.call("ExecProcess", **names, process=process, stdout_port=10 + turn)
            assert await agent.wait("c1", "../e x") == turn
            assert await read_to_end(out) == b"%d\n" % turn
        await agent.call("SignalProcess", container_id="c1", signal=signal.SIGKILL)
        assert await agent.wait("c1") == 137
        with pytest.raises(errors.FailedPrecondition):
            await agent.call("ExecProcess", container_id="c1", exec_id="late", process={"Args": ["true"]})
        await agent.call("RemoveContainer", container_id="c1")
        assert agent.leftovers() == []

    play(scenario)


def test_misuse_of_execs_is_answered(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        await agent.call("ExecProcess", container_id="c1", exec_id="e", process={"Args": ["sleep", "100"]})
        with pytest.raises(errors.AlreadyExists):
            await agent.call("ExecProcess", container_id="c1", exec_id="e", process={"Args": ["true"]})
        for exec_id in ("", "c1"):
            with pytest.raises(errors.InvalidArgument):
                await agent.call(
                    "ExecProcess", container_id="c1", exec_id=exec_id, process={"Args": ["true"]}
                )
        with pytest.raises(errors.InvalidArgument, match="args"):
            await agent.call("ExecProcess", container_id="c1", exec_id="n", process={})
        with pytest.raises(errors.NotFound, match="nobody"):
            await agent.wait("c1", "nobody")
        with pytest.raises(errors.NotFound):
            await agent.call("ExecProcess", container_id="c2", exec_id="n", process={"Args": ["true"]})
        await agent.call("SignalProcess", container_id="c1", exec_id="e", signal=signal.SIGTERM)
        assert await agent.wait("c1", "e") == 143
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_an_exec_id_that_is_used_again_leaves_no_unread_output(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"], annotations={})
        names = {"container_id": "c1", "exec_id": "e"}
        for number in range(2):
            await agent.call("ExecProcess", **names, process={"Args": ["echo", str(number)]})
            await agent.wait("c1", "e")
        assert (await agent.call("ReadStdout", **names, len=9))["data"] == b"1\n"
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_passed_output_of_a_forgotten_exec_arrives(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shim.guest.container._UNREAD_EXECS", 1)
    monkeypatch.setattr("shim.guest.stdio.EXIT_GRACE_S", 0.01)
    size = 600_000

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        out = agent.stream(7)
        process = {"Args": ["head", "-c", str(size), "/dev/zero"]}
        await agent.call("ExecProcess", container_id="c1", exec_id="e", process=process, stdout_port=7)
        await agent.wait("c1", "e")
        for number in range(2):
            name = f"e{number}"
            await agent.call("ExecProcess", container_id="c1", exec_id=name, process={"Args": ["true"]})
            await agent.wait("c1", name)
        with pytest.raises(errors.NotFound):
            await agent.wait("c1", "e")
        assert len(await read_to_end(out)) == size
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_many_ended_execs_are_forgotten_oldest_first(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shim.guest.container._REMEMBERED_EXECS", 2)

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        for number in range(4):
            await agent.call(
                "ExecProcess", container_id="c1", exec_id=f"e{number}", process={"Args": ["true"]}
            )
            await agent.wait("c1", f"e{number}")
        for number in (0, 1):
            with pytest.raises(errors.NotFound):
                await agent.wait("c1", f"e{number}")
        assert await agent.wait("c1", "e2") == 0
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_an_ended_exec_is_kept_longer_while_its_output_is_unread(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.guest.container._REMEMBERED_EXECS", 1)
    monkeypatch.setattr("shim.guest.container._UNREAD_EXECS", 3)

    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"], annotations={})
        for number in range(4):
            await agent.call(
                "ExecProcess",
                container_id="c1",
                exec_id=f"e{number}",
                process={"Args": ["echo", str(number)]},
            )
            await agent.wait("c1", f"e{number}")
        with pytest.raises(errors.NotFound):
            await agent.call("ReadStdout", container_id="c1", exec_id="e0", len=9)
        for number in (1, 2, 3):
            read = {"container_id": "c1", "exec_id": f"e{number}", "len": 9}
            assert (await agent.call("ReadStdout", **read))["data"] == b"%d\n" % number
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_a_missing_program_is_not_found_in_runcs_words_and_leaves_nothing(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        out = agent.stream(7)
        words = 'OCI runtime create failed: .*exec: "nosuch": executable file not found'
        with pytest.raises(errors.NotFound, match=words):
            await agent.run("c1", ["nosuch"], stdout_port=7)
        assert await read_to_end(out) == b""
        assert agent.leftovers() == []
        await agent.run("c1", ["sleep", "100"])
        out = agent.stream(8)
        with pytest.raises(errors.NotFound, match="OCI runtime exec failed"):
            await agent.call(
                "ExecProcess", container_id="c1", exec_id="e", process={"Args": ["nosuch"]}, stdout_port=8
            )
        assert await read_to_end(out) == b""
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


@pytest.mark.parametrize("container_id", ["", "../x", "a/b", ".hidden", "-x", "a b", "a\n", "x" * 256, "ü"])
def test_an_id_that_could_not_be_a_path_part_is_refused(play: Play, container_id: str) -> None:
    async def scenario(agent: Agent) -> None:
        with pytest.raises(errors.InvalidArgument):
            await agent.call("CreateContainer", container_id=container_id, OCI=agent.spec(["true"]))

    play(scenario)


@pytest.mark.parametrize(
    ("root", "kind"),
    [("", errors.InvalidArgument), ("/a/../b", errors.InvalidArgument), ("/nonexistent", errors.NotFound)],
)
def test_a_rootfs_that_is_none_is_refused_and_leaves_nothing(
    play: Play, root: str, kind: type[errors.ShimError]
) -> None:
    async def scenario(agent: Agent) -> None:
        out = agent.stream(7)
        spec = {**agent.spec(["true"]), "Root": {"Path": root}}
        with pytest.raises(kind):
            await agent.call("CreateContainer", container_id="c1", OCI=spec, stdout_port=7)
        assert await read_to_end(out) == b""
        with pytest.raises(errors.NotFound):
            await agent.wait("c1")

    play(scenario)


def test_one_id_and_one_cgroup_belong_to_one_container(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        slow = agent.call(
            "CreateContainer", container_id="c1", OCI=agent.spec(["sleep", "100"], {"test.slow": "0.05"})
        )
        creating = asyncio.create_task(slow)
        await asyncio.sleep(0)
        with pytest.raises(errors.AlreadyExists):
            await agent.call("CreateContainer", container_id="c1", OCI=agent.spec(["true"]))
        with pytest.raises(errors.FailedPrecondition):
            await agent.wait("c1")
        spec = {**agent.spec(["true"]), "Linux": {"CgroupsPath": "/kata/c1/below"}}
        with pytest.raises(errors.InvalidArgument, match="in use by container c1"):
            await agent.call("CreateContainer", container_id="c2", OCI=spec)
        await creating
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_a_stream_that_does_not_come_fails_the_request(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shim.guest.service._CLAIM_S", 0.01)

    async def scenario(agent: Agent) -> None:
        with pytest.raises(errors.DeadlineExceeded, match="host port 9"):
            await agent.call("CreateContainer", container_id="c1", OCI=agent.spec(["true"]), stdout_port=9)
        assert not (agent.directory / "state").exists(), "crun was not called"

    play(scenario)


def test_a_creation_whose_caller_has_gone_is_undone(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        spec = agent.spec(["sleep", "100"], {"test.slow": "0.05"})
        creating = asyncio.create_task(agent.call("CreateContainer", container_id="c1", OCI=spec))
        await asyncio.sleep(0.01)
        creating.cancel()
        with pytest.raises(asyncio.CancelledError):
            await creating

        def is_gone() -> bool:
            try:
                agent.sandbox.container("c1")
            except errors.NotFound:
                return True
            return False

        await eventually(is_gone)
        assert agent.leftovers() == []
        await asyncio.sleep(0)

    play(scenario)


def test_a_result_that_comes_with_the_callers_end_is_undone(play: Play) -> None:
    class Undone:
        signals: ClassVar[list[int]] = []

        def signal(self, number: int) -> None:
            self.signals.append(number)

    async def scenario(agent: Agent) -> None:
        done = asyncio.Event()

        async def work() -> Any:
            await done.wait()
            return Undone()

        caller = asyncio.create_task(agent.sandbox._finish(work(), None))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done.set()
        await asyncio.sleep(0)  # it is made, its caller does not know yet
        caller.cancel()
        await asyncio.wait([caller])
        assert caller.cancelled()
        await eventually(lambda: Undone.signals == [signal.SIGKILL])

    play(scenario)


def test_a_container_that_is_removed_while_it_waits_for_its_streams_is_not_made(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        spec = agent.spec(["sleep", "100"])
        request = agent.call("CreateContainer", container_id="c1", OCI=spec, stdout_port=7)
        creating = asyncio.create_task(request)
        await asyncio.sleep(0.01)
        await agent.call("RemoveContainer", container_id="c1")
        out = agent.stream(7)
        with pytest.raises(errors.FailedPrecondition, match="was removed"):
            await creating
        assert await read_to_end(out) == b""
        assert agent.leftovers() == []
        assert not (agent.directory / "state").exists(), "crun was called"

    play(scenario)


def test_a_removal_whose_caller_has_gone_is_done_all_the_same(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        container = agent.sandbox.container("c1")
        async with container._lock:
            removing = asyncio.create_task(agent.call("RemoveContainer", container_id="c1"))
            await eventually(lambda: container.init.ended)
            removing.cancel()
            await asyncio.wait([removing])
        await eventually(lambda: agent.leftovers() == [])
        with pytest.raises(errors.NotFound):
            agent.sandbox.container("c1")

    play(scenario)


def test_a_rootfs_may_be_mounted_in_the_bundle(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where Kata's runtime has it when it is a disk."""
    monkeypatch.setattr(syscall, "mount", lambda *_, **__: None)

    async def scenario(agent: Agent) -> None:
        root = f"{agent.directory}/base/c1/rootfs"
        spec = {**agent.spec(["true"]), "Root": {"Path": root}}
        storage = {"driver": "overlayfs", "mount_point": root}
        await agent.call("CreateContainer", container_id="c1", OCI=spec, storages=[storage])
        await agent.call("RemoveContainer", container_id="c1")
        assert agent.leftovers() == []

    play(scenario)


def test_removal_kills_what_runs(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sh", "-c", "trap '' TERM; exec sleep 100"])
        waiting = asyncio.create_task(agent.wait("c1"))
        await asyncio.sleep(0)
        await agent.call("RemoveContainer", container_id="c1")
        assert await waiting == 137
        assert agent.leftovers() == []

    play(scenario)


def test_killing_the_init_process_kills_the_cgroup_and_no_other(play: Play, cgroups: Path) -> None:
    async def scenario(agent: Agent) -> None:
        for name in ("c1", "c2"):
            (cgroups / "kata" / name).mkdir(parents=True)
            await agent.run(name, ["sleep", "100"])
        await agent.call("SignalProcess", container_id="c1", exec_id="", signal=signal.SIGKILL)
        assert await agent.wait("c1") == 137
        assert (cgroups / "kata" / "c1" / "cgroup.kill").exists()
        assert not (cgroups / "kata" / "c2" / "cgroup.kill").exists()
        with pytest.raises(errors.InvalidArgument):
            await agent.call("SignalProcess", container_id="c2", signal=200)
        for name in ("c1", "c2"):
            await agent.call("RemoveContainer", container_id=name)

    play(scenario)


def test_a_container_that_was_out_of_memory_is_told(play: Play, cgroups: Path) -> None:
    async def scenario(agent: Agent) -> None:
        directory = cgroups / "kata" / "c1"
        directory.mkdir(parents=True)
        (directory / "memory.events").write_text("oom_kill 0\n")
        event = asyncio.create_task(agent.call("GetOOMEvent"))
        await agent.run("c1", ["sleep", "100"])
        (directory / "memory.events").write_text("oom_kill 1\n")
        assert await event == {"container_id": "c1"}
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)


def test_a_terminal_is_crun_s_and_can_be_resized(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        out = agent.stream(7)
        await agent.call(
            "CreateContainer",
            container_id="c1",
            OCI=agent.spec(["stty", "size"], Terminal=True),
            stdout_port=7,
        )
        await agent.call("TtyWinResize", container_id="c1", row=33, column=99)
        await agent.call("StartContainer", container_id="c1")
        assert await agent.wait("c1") == 0
        assert await read_to_end(out) == b"33 99\r\n"
        await agent.call("RemoveContainer", container_id="c1")
        assert agent.leftovers() == []

    play(scenario)


def test_the_bundle_holds_the_guests_view_of_the_spec(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        spec = {**agent.spec(["sleep", "100"]), "Linux": {"Namespaces": [{"Type": "network", "Path": "/x"}]}}
        await agent.call("CreateContainer", container_id="c1", OCI=spec)
        container = agent.sandbox.container("c1")
        own = [{"type": "pid"}, {"type": "cgroup"}]
        assert container.spec["linux"] == {"namespaces": own, "cgroupsPath": "/kata/c1"}
        other = {**spec, "Linux": {}}
        await agent.call("CreateContainer", container_id="c2", OCI=other, sandbox_pidns=True)
        joined = agent.sandbox.container("c2").spec["linux"]["namespaces"]
        assert joined == [{"type": "pid", "path": f"/proc/{container.init.pid}/ns/pid"}, {"type": "cgroup"}]
        for container_id in ("c1", "c2"):
            await agent.call("RemoveContainer", container_id=container_id)

    play(scenario)


def test_destroying_the_sandbox_removes_all_and_powers_off_after_the_answer(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        await agent.run("c1", ["sleep", "100"])
        await agent.run("c2", ["true"])
        await agent.call("DestroySandbox")
        assert agent.leftovers() == []
        assert agent.powered_off == []
        await eventually(lambda: agent.powered_off == [True])

    play(scenario)


def test_health_and_details(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        assert await agent.call("Check", "grpc.Health") == {"status": 1}
        assert "agent_version" in await agent.call("Version", "grpc.Health")
        details = await agent.call("GetGuestDetails", mem_block_size=True)
        assert set(details) == {"agent_details", "mem_block_size_bytes"}
        with pytest.raises(errors.InvalidArgument):
            await agent.call("SetGuestDateTime")
        with pytest.raises(errors.InvalidArgument):
            await agent.call("ReseedRandomDev")

    play(scenario)


def test_every_rpc_here_is_one_of_the_agents(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        for service, methods in agent._table.items():
            assert set(methods) <= set(SERVICES[service])

    play(scenario)


def test_no_descriptor_of_the_agent_reaches_a_container(play: Play) -> None:
    async def scenario(agent: Agent) -> None:
        out = agent.stream(7)
        leaked = os.open("/dev/zero", os.O_RDONLY)
        await agent.run("c1", ["sh", "-c", "ls -l /proc/self/fd | grep -c zero"], stdout_port=7)
        await agent.wait("c1")
        assert await read_to_end(out) == b"0\n"
        os.close(leaked)
        await agent.call("RemoveContainer", container_id="c1")

    play(scenario)
