"""The driver against a stand-in for QEMU: a program that speaks QMP on the fd it inherits."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from shim.errors import ChildFailed, FailedPrecondition, NotFound, Unavailable
from shim.hypervisor.api import VhostUserFs, VhostUserVsock, VirtioNet, VmSpec
from shim.hypervisor.qemu.driver import QemuHypervisor
from shim.hypervisor.qemu.qmp import QmpError
from shim.log import Log
from shim.value import replace

STAND_IN = """
    import json, os, re, socket, sys
    args = sys.argv[1:]
    qmp = socket.socket(fileno=int(re.search(r"id=qmp,fd=(\\d+)", " ".join(args))[1]))
    console = int(args[args.index("-add-fd") + 1].removeprefix("fd=").partition(",")[0])
    def send(message):
        qmp.sendall(json.dumps(message).encode() + b"\\r\\n")
    def tell(name, **data):
        send({"event": name, "data": data})
    def serve(answer, major=9):
        send({"QMP": {"version": {"qemu": {"major": major, "minor": 0, "micro": 1}}}})
        buffer = b""
        while True:
            data, fds, _, _ = socket.recv_fds(qmp, 65536, 4)
            if not data:
                sys.exit(0)
            buffer += data
            while b"\\n" in buffer:
                line, _, buffer = buffer.partition(b"\\n")
                command = json.loads(line)
                value = answer(command["execute"], command["arguments"], fds)
                key = "error" if isinstance(value, str) else "return"
                value = {"class": "GenericError", "desc": value} if key == "error" else {}
                send({key: value, "id": command["id"]})
                if command["execute"] == "quit":
                    sys.exit(0)
    def ok(command, arguments, fds):
        pass
"""
Make = Callable[[str], QemuHypervisor]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A driver whose QEMU runs the given Python."""

    def make_one(body: str) -> QemuHypervisor:
        program = tmp_path / "qemu"
        program.write_text(f"#!{sys.executable} -IS\n" + textwrap.dedent(STAND_IN) + textwrap.dedent(body))
        program.chmod(0o755)
        return QemuHypervisor(Log(2, "error"), str(program))

    return make_one


SPEC = VmSpec("s", Path("/tmp"), Path("/k"), Path("/i"), (), 128, 1, "tcg")


def test_a_vm_starts_resumes_and_stops(make: Make) -> None:
    async def scenario() -> None:
        vm = make("serve(ok)")
        await vm.start(SPEC)
        os.kill(vm.pid, 0)
        await vm.resume()
        exits = await asyncio.gather(vm.stop(), vm.wait(), vm.stop())
        assert {(exit.status, exit.reason) for exit in exits} == {(0, "stopped")}
        assert (await vm.wait()).status == 0
        assert (await vm.stop()).status == 0

    asyncio.run(scenario())


def test_before_start_there_is_no_vm(make: Make) -> None:
    async def scenario() -> None:
        vm = make("serve(ok)")
        for operation in (vm.wait(), vm.stop(), vm.resume()):
            with pytest.raises(FailedPrecondition):
                await operation
        with pytest.raises(FailedPrecondition):
            _ = vm.pid

    asyncio.run(scenario())


def test_a_second_start_is_refused(make: Make) -> None:
    async def scenario() -> None:
        vm = make("serve(ok)")
        await vm.start(SPEC)
        with pytest.raises(FailedPrecondition):
            await vm.start(SPEC)
        await vm.stop()

    asyncio.run(scenario())


def test_a_failed_start_has_qemus_own_words_and_leaves_nothing(make: Make) -> None:
    async def scenario() -> None:
        before = os.listdir("/proc/self/fd")
        vm = make("sys.exit('qemu: could not open kernel file')")
        with pytest.raises(ChildFailed, match="exit status 1: qemu: could not open kernel file"):
            await vm.start(SPEC)
        with pytest.raises(FailedPrecondition):
            await vm.wait()
        assert len(os.listdir("/proc/self/fd")) == len(before)

    asyncio.run(scenario())


def test_a_missing_program_is_named() -> None:
    async def scenario() -> None:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(NotFound, match="/no/qemu"):
            await QemuHypervisor(Log(2, "error"), "/no/qemu").start(SPEC)
        assert len(os.listdir("/proc/self/fd")) == len(before)

    asyncio.run(scenario())


def test_a_cancelled_start_leaves_no_process(make: Make, tmp_path: Path) -> None:
    async def scenario() -> None:
        pid_file = tmp_path / "pid"
        vm = make(f"""
            with open({str(pid_file)!r}, "w") as file: file.write(str(os.getpid()))
            qmp.recv(1)
        """)
        starting = asyncio.ensure_future(vm.start(SPEC))
        async with asyncio.timeout(5):
            while not pid_file.exists() or not pid_file.read_text():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid_file.read_text()), 0)

    asyncio.run(scenario())


def test_a_killed_vm_says_so_and_later_calls_fail_fast(make: Make) -> None:
    async def scenario() -> None:
        vm = make("os.write(console, b'Out of memory\\nreally\\n'); serve(ok)")
        await vm.start(SPEC)
        os.kill(vm.pid, signal.SIGKILL)
        exit = await asyncio.wait_for(vm.wait(), 5)
        assert exit.status == -signal.SIGKILL
        assert exit.reason == "QEMU was killed by SIGKILL; console: Out of memory | really"
        with pytest.raises(Unavailable, match="SIGKILL"):
            await vm.resume()
        assert (await vm.stop()).status == -signal.SIGKILL

    asyncio.run(scenario())


def test_a_guest_that_ends_itself_gives_its_reason(make: Make) -> None:
    async def scenario() -> None:
        vm = make("""
            def answer(command, arguments, fds):
                if command == "cont":
                    tell("SHUTDOWN", guest=True, reason="guest-reset")
                    print("a warning", file=sys.stderr)
                    sys.exit(0)
            serve(answer)
        """)
        await vm.start(SPEC)
        with pytest.raises(Unavailable):
            await vm.resume()
        assert (await vm.wait()).reason == "the VM ended itself (guest-reset); QEMU: a warning"

    asyncio.run(scenario())


def test_a_guest_kernels_panic_is_told_and_not_its_stack_trace(make: Make) -> None:
    async def scenario() -> None:
        vm = make("""
            os.write(console, b"[1.0] Kernel panic - not syncing: no init\\n" + b"[1.1] Call Trace\\n" * 20)
            def answer(command, arguments, fds):
                if command == "cont":
                    tell("SHUTDOWN", guest=True, reason="guest-reset")
                    sys.exit(0)
            serve(answer)
        """)
        await vm.start(SPEC)
        with pytest.raises(Unavailable):
            await vm.resume()
        assert (await vm.wait()).reason == (
            "the VM ended itself (guest-reset); console: [1.0] Kernel panic - not syncing: no init"
        )

    asyncio.run(scenario())


def test_a_vm_that_ignores_quit_is_killed(make: Make) -> None:
    async def scenario() -> None:
        vm = make("""
            import time
            def answer(command, arguments, fds):
                if command == "quit":
                    time.sleep(60)
            serve(answer)
        """)
        await vm.start(SPEC)
        assert (await vm.stop(timeout_s=0.05)).status == -signal.SIGKILL

    asyncio.run(scenario())


def test_devices_are_plugged_behind_the_bridge(make: Make, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal"
        vm = make(f"""
            def answer(command, arguments, fds):
                with open({str(journal)!r}, "a") as file:
                    print(command, json.dumps(arguments, sort_keys=True), len(fds), file=file)
            serve(answer)
        """)
        await vm.start(SPEC)
        ours, theirs = socket.socketpair()
        await vm.add_device(VhostUserVsock("v", ours.fileno()))
        await vm.add_device(VhostUserFs("f", "tag", Path("/s.sock")))
        await vm.stop()
        ours.close()
        theirs.close()
        lines = journal.read_text().splitlines()
        assert [line.split()[0] for line in lines] == [
            "qmp_capabilities",
            "getfd",
            "chardev-add",
            "device_add",
            "chardev-add",
            "device_add",
            "quit",
        ]
        assert lines[1].endswith(" 1")
        assert all('"bus": "bridge0"' in line for line in lines if line.startswith("device_add"))

    asyncio.run(scenario())


def test_a_refused_device_leaves_no_chardev(make: Make, tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = tmp_path / "journal"
        vm = make(f"""
            def answer(command, arguments, fds):
                with open({str(journal)!r}, "a") as file:
                    print(command, arguments.get("id"), file=file)
                return "no backend" if command == "device_add" else None
            serve(answer)
        """)
        await vm.start(SPEC)
        with pytest.raises(QmpError, match="no backend"):
            await vm.add_device(VhostUserFs("f", "tag", Path("/s.sock")))
        await vm.stop()
        assert "chardev-remove f-chardev" in journal.read_text()

    asyncio.run(scenario())


def test_a_flooding_console_neither_blocks_nor_grows(make: Make) -> None:
    async def scenario() -> None:
        vm = make("""
            def answer(command, arguments, fds):
                if command == "cont":
                    for _ in range(200):
                        try:
                            os.write(console, b"flood " * 1000)
                        except BlockingIOError:
                            pass
            serve(answer)
        """)
        await vm.start(SPEC)
        await vm.resume()
        assert (await vm.stop()).status == 0

    asyncio.run(scenario())


def test_a_nic_gets_its_tap_as_a_descriptor(make: Make, tmp_path: Path) -> None:
    body = f"""
    def answer(command, arguments, fds):
        with open({str(tmp_path / "asked")!r}, "a") as file:
            print(json.dumps([command, arguments, len(fds)]), file=file)
    serve(answer)
    """

    async def scenario() -> None:
        vm = make(body)
        await vm.start(SPEC)
        tap = os.open("/dev/null", os.O_RDWR)
        await vm.add_device(VirtioNet("net0", tap, "02:00:00:00:00:01"))
        os.close(tap)  # it is the caller's
        await vm.stop()

    asyncio.run(scenario())
    asked = [json.loads(line) for line in (tmp_path / "asked").read_text().splitlines()]
    (getfd, netdev, device) = asked[1:4]  # behind qmp_capabilities
    assert getfd == ["getfd", {"fdname": "net0-tap"}, 1]
    assert netdev == ["netdev_add", {"type": "tap", "id": "net0-tap", "fd": "net0-tap"}, 0]
    assert device[0] == "device_add"
    assert device[1].items() >= {"netdev": "net0-tap", "mac": "02:00:00:00:00:01", "bus": "bridge0"}.items()


@pytest.mark.parametrize("netns", ["", "/proc/self/ns/net"])
def test_the_vmm_runs_in_the_namespace_that_is_named_or_one_of_its_own(make: Make, netns: str) -> None:
    async def scenario() -> None:
        vm = make("serve(ok)")
        await vm.start(replace(SPEC, netns=netns))
        same = os.stat(f"/proc/{vm.pid}/ns/net").st_ino == os.stat("/proc/self/ns/net").st_ino
        assert same == bool(netns)
        await vm.stop()

    asyncio.run(scenario())
