"""The agent's client against an agent service over ttrpc, and the spec on its way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from betterproto.lib.google.protobuf import Empty

from shim import oci
from shim.agent.api import ProcessIds, StdioPorts, Storage
from shim.agent.kata import KataAgent
from shim.agent.spec import process_message, spec_message
from shim.errors import DeadlineExceeded, Internal, InvalidArgument, NotFound, Unavailable
from shim.guest.service import AGENT_VERSION
from shim.network.api import Interface
from shim.pb import grpc, types
from shim.ttrpc import memory
from shim.ttrpc.channel import Channel
from shim.ttrpc.server import Server

SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "unknown": {"x": 1},
    "hostname": "h",
    "process": {
        "terminal": True,
        "consoleSize": {"height": 3, "width": 4},
        "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3, 4]},
        "args": ["sh", "-c", ""],
        "env": ["A=ü"],
        "cwd": "/",
        "capabilities": {"bounding": ["CAP_KILL"], "ambient": None},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 2**64 - 1, "soft": 1}],
        "noNewPrivileges": True,
        "oomScoreAdj": -999,
    },
    "root": {"path": "/r", "readonly": True},
    "mounts": [{"destination": "/d", "type": "bind", "source": "/s", "options": ["ro"]}],
    "annotations": {"k": "v"},
    "linux": {
        "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
        "sysctl": {"net.x": "1"},
        "resources": {
            "memory": {"limit": -1, "disableOOMKiller": True, "kernelTCP": 5},
            "cpu": {"shares": 1024, "quota": -1},
            "pids": {"limit": 7},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
        },
        "cgroupsPath": "/c",
        "namespaces": [{"type": "ipc"}],
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3, "fileMode": 438, "uid": 0}],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [
                {
                    "names": ["a", "b"],
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": 0,
                    "args": [{"index": 1, "value": 2, "valueTwo": 3, "op": "SCMP_CMP_EQ"}],
                }
            ],
        },
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": None,
        "intelRdt": {"l3CacheSchema": "x"},
    },
}


def test_every_member_that_the_agent_knows_arrives() -> None:
    message = grpc.Spec().parse(bytes(spec_message(SPEC)))
    assert (message.version, message.hostname, message.root.path) == ("1.0.2", "h", "/r")
    process = message.process
    assert (process.console_size.height, process.console_size.width) == (3, 4)
    assert (process.user.uid, process.user.additional_gids) == (1, [3, 4])
    assert (process.args, process.env, process.oom_score_adj) == (["sh", "-c", ""], ["A=ü"], -999)
    assert process.capabilities.bounding == ["CAP_KILL"]
    assert (process.rlimits[0].hard, process.no_new_privileges) == (2**64 - 1, True)
    linux = message.linux
    assert (linux.uid_mappings[0].host_id, linux.sysctl) == (1000, {"net.x": "1"})
    assert (linux.resources.memory.limit, linux.resources.memory.kernel_tcp) == (-1, 5)
    assert linux.resources.memory.disable_oom_killer
    assert (linux.resources.cpu.quota, linux.resources.pids.limit) == (-1, 7)
    assert linux.resources.hugepage_limits[0].pagesize == "2MB"
    assert linux.devices[0].file_mode == 438
    syscall = linux.seccomp.syscalls[0]
    assert (syscall.names, syscall.args[0].value_two, syscall.errnoret) == (["a", "b"], 3, 0)
    assert linux.intel_rdt.l3_cache_schema == "x"
    assert message.annotations == {"k": "v"}


def test_a_spec_of_nothing_is_an_empty_message() -> None:
    assert bytes(spec_message({})) == b""
    assert bytes(spec_message({"process": None, "mounts": None})) == b""


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"process": []}, "spec.process"),
        ({"process": {"args": "sh"}}, "spec.process.args"),
        ({"process": {"args": ["sh", 1]}}, "spec.process.args[1]"),
        ({"process": {"args": [None]}}, "spec.process.args[0]"),
        ({"process": {"terminal": 1}}, "spec.process.terminal"),
        ({"process": {"user": {"uid": -1}}}, "spec.process.user.uid"),
        ({"process": {"user": {"uid": 2**32}}}, "spec.process.user.uid"),
        ({"process": {"user": {"uid": True}}}, "spec.process.user.uid"),
        ({"process": {"user": {"uid": 1.0}}}, "spec.process.user.uid"),
        ({"process": {"oomScoreAdj": 2**63}}, "spec.process.oomScoreAdj"),
        ({"process": {"cwd": "\ud800"}}, "spec.process.cwd"),
        ({"mounts": [[]]}, "spec.mounts[0]"),
        ({"annotations": {"a": 1}}, "spec.annotations"),
        ({"linux": {"sysctl": []}}, "spec.linux.sysctl"),
    ],
)
def test_a_member_of_the_wrong_kind_is_named(spec: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        spec_message(spec)
    assert str(error.value).startswith(f"{path}: ")


class Guest(grpc.AgentServiceBase):
    """Records requests; `reply` answers or raises."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.waiting, self.asked = asyncio.Event(), asyncio.Event()
        self.status = 0

    async def create_container(self, create_container_request: grpc.CreateContainerRequest) -> Empty:
        self.requests.append(create_container_request)
        return Empty()

    async def start_container(self, start_container_request: grpc.StartContainerRequest) -> Empty:
        raise NotFound("no such container" + "!" * len(start_container_request.container_id))

    async def create_sandbox(self, create_sandbox_request: grpc.CreateSandboxRequest) -> Empty:
        self.requests.append(create_sandbox_request)
        return Empty()

    async def exec_process(self, exec_process_request: grpc.ExecProcessRequest) -> Empty:
        self.requests.append(exec_process_request)
        return Empty()

    async def signal_process(self, signal_process_request: grpc.SignalProcessRequest) -> Empty:
        self.requests.append(signal_process_request)
        return Empty()

    async def wait_process(self, wait_process_request: grpc.WaitProcessRequest) -> grpc.WaitProcessResponse:
        self.requests.append(wait_process_request)
        self.asked.set()
        await self.waiting.wait()
        return grpc.WaitProcessResponse(status=self.status)

    async def write_stdin(self, write_stream_request: grpc.WriteStreamRequest) -> grpc.WriteStreamResponse:
        return grpc.WriteStreamResponse(len=1000)

    async def read_stdout(self, read_stream_request: grpc.ReadStreamRequest) -> grpc.ReadStreamResponse:
        return grpc.ReadStreamResponse(data=bytes(8))

    async def update_interface(
        self, update_interface_request: grpc.UpdateInterfaceRequest
    ) -> types.Interface:
        self.requests.append(update_interface_request)
        if len(self.requests) < 3:
            raise Internal("No such device")
        return update_interface_request.interface

    async def close_stdin(self, close_stdin_request: grpc.CloseStdinRequest) -> Empty:
        self.requests.append(close_stdin_request)
        if close_stdin_request.exec_id:
            raise NotFound("InvalidExecId")
        return Empty()

    async def set_guest_date_time(self, set_guest_date_time_request: grpc.SetGuestDateTimeRequest) -> Empty:
        self.requests.append(set_guest_date_time_request)
        return Empty()

    async def tty_win_resize(self, tty_win_resize_request: grpc.TtyWinResizeRequest) -> Empty:
        await asyncio.Event().wait()
        return Empty()


class Health(grpc.HealthBase):
    def __init__(self) -> None:
        self.status = grpc.HealthCheckResponseServingStatus.SERVING
        self.agent_version = "9.9"

    async def check(self, check_request: grpc.CheckRequest) -> grpc.HealthCheckResponse:
        return grpc.HealthCheckResponse(status=self.status)

    async def version(self, check_request: grpc.CheckRequest) -> grpc.VersionCheckResponse:
        return grpc.VersionCheckResponse(agent_version=self.agent_version)


Body = Callable[[KataAgent, Guest, Health, Channel], Awaitable[None]]


def with_agent(body: Body) -> Callable[[], None]:
    def run() -> None:
        async def main() -> None:
            guest, health = Guest(), Health()
            server = Server([guest, health])
            channel = memory.connect(server)
            agent = KataAgent(channel, 5.0, pause_s=0.001)
            async with asyncio.timeout(10):
                await body(agent, guest, health, channel)
            await agent.aclose()
            await server.aclose()

        asyncio.run(main())

    run.__name__, run.__doc__ = body.__name__, body.__doc__
    return run


@with_agent
async def test_check_tells_the_version_of_an_agent_that_serves(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    assert await agent.check() == "9.9"
    health.status = grpc.HealthCheckResponseServingStatus.NOT_SERVING
    with pytest.raises(Internal, match="not serving"):
        await agent.check()


@with_agent
async def test_an_unused_stdin_is_ended_for_an_agent_that_does_not_by_itself(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    health.agent_version = AGENT_VERSION
    await agent.check()
    await agent.end_unused_stdin(ProcessIds("c1"), StdioPorts())
    assert not guest.requests
    await agent.end_unused_stdin(ProcessIds("c0"), None)
    health.agent_version = "4.1.0"
    await agent.check()
    await agent.end_unused_stdin(ProcessIds("c1"), StdioPorts())
    await agent.end_unused_stdin(ProcessIds("c1", "ended already"), StdioPorts())
    assert [request.exec_id for request in guest.requests] == ["", "", "ended already"]


@with_agent
async def test_a_nic_that_is_not_there_yet_is_told_of_again_to_an_agent_that_does_not_wait(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    health.agent_version = AGENT_VERSION
    await agent.check()
    with pytest.raises(Internal, match="No such device"):
        await agent.update_interface(Interface("eth0", "02:00:00:00:00:01", 1500, ()))
    health.agent_version = "4.1.0"
    await agent.check()
    await agent.update_interface(Interface("eth0", "02:00:00:00:00:01", 1500, ()))
    assert len(guest.requests) == 3


@with_agent
async def test_requests_carry_what_the_agent_needs(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    storage = Storage("virtio-fs", "kataShared", "virtiofs", "/m", ("nodev",))
    await agent.create_sandbox("s", "host", ["nameserver 1.1.1.1"], [storage], shared_pidns=False)
    await agent.create_container("c", SPEC, [], StdioPorts(1, 2, 3), sandbox_pidns=True)
    await agent.exec_process(ProcessIds("c", "e"), {"args": ["ls"]}, StdioPorts(stdout=7))
    await agent.signal_process(ProcessIds("c", "e"), 15, everyone=False)
    await agent.signal_process(ProcessIds("c", "e"), 9, everyone=True)
    await agent.set_guest_date_time(1_500_000_000_999_999_999)
    sandbox, create, execute, signal, everyone, clock = guest.requests
    assert (sandbox.sandbox_id, sandbox.hostname, sandbox.dns) == ("s", "host", ["nameserver 1.1.1.1"])
    assert (sandbox.storages[0].mount_point, sandbox.storages[0].options) == ("/m", ["nodev"])
    assert (create.container_id, create.exec_id, create.sandbox_pidns) == ("c", "", True)
    assert (create.stdin_port, create.stdout_port, create.stderr_port) == (1, 2, 3)
    assert create.oci.process.args == ["sh", "-c", ""]
    assert create.oci.annotations == {"k": "v", oci.PASSFD: "true"}
    assert (execute.exec_id, execute.process.args, execute.stdout_port) == ("e", ["ls"], 7)
    assert (signal.exec_id, signal.signal) == ("e", 15)
    assert (everyone.exec_id, everyone.signal) == ("", 9)
    assert (clock.sec, clock.usec) == (1_500_000_000, 999_999)


@with_agent
async def test_without_ports_nothing_says_that_streams_are_passed(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    await agent.create_container("c", SPEC, [], None, sandbox_pidns=True)
    await agent.exec_process(ProcessIds("c", "e"), {"args": ["ls"]}, None)
    create, execute = guest.requests
    assert create.oci.annotations == {"k": "v"}
    assert (create.stdin_port, create.stdout_port, create.stderr_port, execute.stdout_port) == (0, 0, 0, 0)


@with_agent
async def test_errors_of_the_agent_keep_their_kind(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    with pytest.raises(NotFound, match=r"^no such container!$"):
        await agent.start_container("c")
    with pytest.raises(NotFound) as error:
        await agent.start_container("c" * 1_000_000)
    assert len(str(error.value)) < 5000


@with_agent
async def test_numbers_from_the_guest_are_not_believed(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    guest.waiting.set()
    guest.status = -1
    assert await agent.wait_process(ProcessIds("c")) == 255
    with pytest.raises(Internal, match="1000 of 3 bytes"):
        await agent.write_stdin(ProcessIds("c"), b"abc")
    with pytest.raises(Internal, match="8 bytes where 7"):
        await agent.read_stdout(ProcessIds("c"), 7)


@with_agent
async def test_a_lost_connection_fails_who_waits(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    waiting = asyncio.create_task(agent.wait_process(ProcessIds("c")))
    await guest.asked.wait()
    channel.close()
    with pytest.raises(Unavailable):
        await waiting


@with_agent
async def test_a_call_without_an_answer_has_a_deadline(
    agent: KataAgent, guest: Guest, health: Health, channel: Channel
) -> None:
    hasty = KataAgent(channel, 0.05)
    with pytest.raises(DeadlineExceeded):
        await hasty.resize_tty(ProcessIds("c"), 1, 2)


def test_a_process_is_converted_by_itself() -> None:
    assert process_message({"args": ["a"], "user": {"gid": 5}}).user.gid == 5
    with pytest.raises(InvalidArgument, match=r"process\.env"):
        process_message({"env": 1})
