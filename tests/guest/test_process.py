from __future__ import annotations

import asyncio
import os
import signal

import pytest

from shim.guest.process import Process
from shim.guest.reaper import Reaper, exit_code
from shim.guest.runtime import Launched
from shim.guest.stdio import Stdio

from .loop import go

IGNORES_TERM = "trap '' TERM; echo ready; exec sleep 100"
HANDLES_TERM = "trap 'exit 43' TERM; echo ready; while :; do sleep 0.01; done"


class Started:
    """A real child with stdout and stderr readable by RPC."""

    def __init__(self, reaper: Reaper, script: str, *, exec_id: str = "") -> None:
        stdio = Stdio([None, None, None], terminal=False, rpc=True)
        self.exits: list[bool] = []
        argv = ["sh", "-c", script]
        pid, exited = reaper.spawn("/bin/sh", argv, stdio.open(), {"PATH": "/bin:/usr/bin"})
        self.process = Process(
            exec_id, Launched(pid, exited, -1), stdio, lambda: self.exits.append(self.process.finished)
        )

    async def ready(self) -> None:
        assert await self.process.stdio.read(1, 100) == b"ready\n"


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 77", 77), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_exit_codes_are_a_shells(script: str, code: int) -> None:
    async def test() -> None:
        reaper = Reaper()
        reaper.install()
        started = Started(reaper, script)
        assert await started.process.wait() == code
        assert started.exits == [False], "the exit is told once, and before any waiter is answered"
        assert started.process.ended
        started.process.stdio.close()
        reaper.uninstall()

    go(test)


def test_any_number_may_wait_also_afterwards_and_one_may_give_up() -> None:
    async def test() -> None:
        reaper = Reaper()
        reaper.install()
        started = Started(reaper, "read x; exit 5")
        waits = [asyncio.create_task(started.process.wait()) for _ in range(5)]
        await asyncio.sleep(0)
        waits[0].cancel()
        await started.process.stdio.write(b"\n")
        assert await asyncio.gather(*waits[1:]) == [5, 5, 5, 5]
        assert await started.process.wait() == 5
        started.process.stdio.close()
        reaper.uninstall()

    go(test)


@pytest.mark.parametrize(
    ("script", "exec_id", "signals", "code"),
    [
        ("echo ready; exec sleep 100", "", [signal.SIGTERM], 143),
        ("echo ready; exec sleep 100", "e", [signal.SIGTERM], 143),
        ("echo ready; exec sleep 100", "", [signal.SIGKILL], 137),
        (HANDLES_TERM, "", [signal.SIGTERM], 43),
        (IGNORES_TERM, "", [signal.SIGTERM, signal.SIGKILL], 137),
        # Not SIGINT: a test run in the background of a shell has it ignored, and its children too.
        (IGNORES_TERM, "", [0, signal.SIGUSR2], 140),
    ],
)
def test_signals_end_a_process_as_they_would_outside_of_a_container(
    script: str, exec_id: str, signals: list[int], code: int
) -> None:
    async def test() -> None:
        reaper = Reaper()
        reaper.install()
        started = Started(reaper, script, exec_id=exec_id)
        await started.ready()
        for number in signals:
            started.process.signal(number)
        assert await started.process.wait() == code
        started.process.signal(signal.SIGTERM)
        started.process.stdio.close()
        reaper.uninstall()

    go(test)


def test_no_signal_goes_to_a_pid_that_was_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        reaper = Reaper()
        started = Started(reaper, "exit 3")
        while not started.process.ended:
            reaper.reap()  # no task has heard of it yet
        killed: list[int] = []
        monkeypatch.setattr(os, "kill", lambda pid, _number: killed.append(pid))
        started.process.signal(signal.SIGKILL)
        assert await started.process.wait() == 3
        assert killed == []
        started.process.stdio.close()

    go(test)


def test_a_program_does_not_inherit_what_python_ignores() -> None:
    async def test() -> None:
        reaper = Reaper()
        reaper.install()
        started = Started(reaper, "grep SigIgn /proc/self/status")
        ignored = int((await started.process.stdio.read(1, 100)).split()[1], 16)
        assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
        assert await started.process.wait() == 0
        started.process.stdio.close()
        reaper.uninstall()

    go(test)


def start_and_end() -> int:
    """The pid of a child that has ended and is not reaped."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid


def test_a_child_that_ended_before_anybody_asked_is_remembered_while_adopting() -> None:
    async def test() -> None:
        reaper = Reaper()
        with reaper.adopting():
            pid = start_and_end()
            reaper.reap()
            assert exit_code(await reaper.watch(pid)) == 0
        with reaper.adopting():
            assert not reaper.watch(pid).done(), "and forgotten afterwards"

    go(test)


def test_children_nobody_asks_for_are_reaped() -> None:
    async def test() -> None:
        reaper = Reaper()
        pid = start_and_end()
        reaper.reap()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    go(test)
