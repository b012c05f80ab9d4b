"""Children: their ends are seen, their output is bounded, none is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from shim.children import Child, Tail, find_program, spawn, spawn_with_fds
from shim.errors import ChildFailed, FailedPrecondition, NotFound


def sh(script: str, **more: object) -> Child:
    return spawn(["/bin/sh", "-c", script], **more)  # type: ignore[arg-type]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_gone(*pids: int) -> None:
    async with asyncio.timeout(5):
        while any(is_running(pid) for pid in pids):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 77", 77), ("kill -9 $$", -9), ("kill -TERM $$", -15)]
)
def test_the_status_is_the_exit_code_or_the_negative_signal(script: str, status: int) -> None:
    async def scenario() -> None:
        child = sh(script)
        assert await child.wait() == status
        assert child.status == status

    asyncio.run(scenario())


def test_every_waiter_gets_the_status_also_afterwards() -> None:
    async def scenario() -> None:
        child = sh("exit 3")
        assert list(await asyncio.gather(child.wait(), child.wait(), child.wait())) == [3, 3, 3]
        assert await child.wait() == 3

    asyncio.run(scenario())


def test_a_cancelled_waiter_takes_nothing_from_the_others() -> None:
    async def scenario() -> None:
        child = sh("read x </dev/zero; sleep 60")
        waiter = asyncio.ensure_future(child.wait())
        await asyncio.sleep(0)
        waiter.cancel()
        assert child.status is None
        assert await child.kill() == -signal.SIGKILL

    asyncio.run(scenario())


def test_the_last_output_is_in_the_failure() -> None:
    async def scenario() -> None:
        child = sh("echo to stdout; echo 'no such machine' >&2; exit 1")
        await child.wait()
        failure = child.failure()
        assert isinstance(failure, ChildFailed)
        assert str(failure) == "/bin/sh: exit status 1: to stdout\nno such machine"

    asyncio.run(scenario())


def test_lines_reach_the_callback_and_the_tail_stays_bounded() -> None:
    async def scenario() -> None:
        lines: list[str] = []
        child = sh("i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done", on_line=lines.append)
        assert await child.wait() == 0
        assert lines == [f"line {number}" for number in range(3000)]
        assert len(child.output_tail) <= 8192
        assert child.output_tail.endswith("line 2999\n")

    asyncio.run(scenario())


def test_a_flood_without_newlines_is_cut_and_forgotten() -> None:
    lines: list[str] = []
    tail = Tail(lines.append, limit=100, line_limit=10)
    for _ in range(1000):
        tail.feed(b"x" * 33)
    tail.finish()
    assert "".join(lines) == "x" * 33000
    assert max(map(len, lines)) == 10
    assert tail.text() == "x" * 100


def test_bytes_that_are_no_text_do_not_hurt() -> None:
    lines: list[str] = []
    tail = Tail(lines.append)
    tail.feed(b"\xff\xfe\x00ok\nhalf")
    tail.finish()
    assert lines == ["\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\0ok", "half"]


def test_sigterm_comes_first() -> None:
    async def scenario() -> None:
        ready = asyncio.Event()
        child = sh(
            "trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done", on_line=lambda _: ready.set()
        )
        await ready.wait()
        assert await child.terminate(timeout_s=10) == 5
        assert await child.terminate(timeout_s=10) == 5

    asyncio.run(scenario())


def test_one_that_ignores_sigterm_is_killed() -> None:
    async def scenario() -> None:
        ready = asyncio.Event()
        child = sh("trap '' TERM; echo ready; while :; do sleep 0.01; done", on_line=lambda _: ready.set())
        await ready.wait()
        assert await child.terminate(timeout_s=0.05) == -signal.SIGKILL

    asyncio.run(scenario())


def test_grandchildren_in_its_group_end_with_it() -> None:
    async def scenario() -> None:
        child = sh("sleep 60 & echo $!; exit 0")
        assert await child.wait() == 0
        await until_gone(int(child.output_tail))

    asyncio.run(scenario())


def test_an_escaped_grandchild_that_holds_the_output_delays_nothing() -> None:
    async def scenario() -> None:
        child = sh(
            "setsid sh -c 'echo $$; exec sleep 60' & while ! read x; do :; done </dev/null & sleep 0.2"
        )
        async with asyncio.timeout(5):
            assert await child.wait() == 0
        os.kill(int(child.output_tail), signal.SIGKILL)

    asyncio.run(scenario())


def test_only_the_passed_fds_are_open_under_their_numbers() -> None:
    async def scenario() -> None:
        kept, other = os.open("/dev/null", os.O_RDONLY), os.open("/dev/zero", os.O_RDONLY)
        os.set_inheritable(other, True)
        child = spawn(["/bin/ls", "/proc/self/fd"], pass_fds=[kept])
        await child.wait()
        listed_by = 3  # ls opens the directory
        assert set(map(int, child.output_tail.split())) == {0, 1, 2, listed_by, kept}
        os.close(kept)
        os.close(other)

    asyncio.run(scenario())


def test_a_missing_program_is_named() -> None:
    async def scenario() -> None:
        with pytest.raises(NotFound, match="no-such-program"):
            spawn(["no-such-program", "-x"])

    asyncio.run(scenario())
    with pytest.raises(NotFound, match="first or /second"):
        find_program(["first", "/second"])


def test_spawning_from_another_thread_is_refused() -> None:
    async def scenario() -> None:
        errors: list[BaseException] = []

        def spawn_there() -> None:
            try:
                spawn(["/bin/true"])
            except FailedPrecondition as err:
                errors.append(err)

        thread = threading.Thread(target=spawn_there)
        thread.start()
        thread.join()
        assert errors

    asyncio.run(scenario())


def test_a_child_whose_parent_is_killed_before_it_is_bound_to_it_never_runs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    setpriv = tmp_path / "setpriv"
    setpriv.write_text(f'#!/bin/sh\nread line <{tmp_path}/go\nexec {find_program(["setpriv"])} "$@"\n')
    setpriv.chmod(0o755)
    program = textwrap.dedent(f"""
        import asyncio
        from shim.children import spawn

        async def main():
            print(spawn(["/bin/sh", "-c", "touch {tmp_path}/ran; exec sleep 60"]).pid, flush=True)
            await asyncio.sleep(60)

        asyncio.run(main())
    """)
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environ)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    (tmp_path / "go").write_text("go\n")
    asyncio.run(until_gone(pid))
    assert not (tmp_path / "ran").exists()


def test_children_die_when_their_parent_is_killed() -> None:
    program = textwrap.dedent("""
        import asyncio
        from shim.children import spawn
        async def main():
            print(spawn(["/bin/sleep", "60"]).pid, flush=True)
            await asyncio.sleep(60)
        asyncio.run(main())
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    # The prctl and the exec come a moment after the fork.
    asyncio.run(until_named(pid, "sleep"))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    asyncio.run(until_gone(pid))


async def until_named(pid: int, name: str) -> None:
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid}/comm").read_text().strip() != name:  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.01)


def test_no_fds_stay_behind() -> None:
    async def scenario() -> None:
        await sh("exit 0").wait()
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(5):
            await sh("echo x").wait()
        assert sorted(os.listdir("/proc/self/fd")) == before

    asyncio.run(scenario())


def test_descriptors_get_the_numbers_that_were_asked_for_and_no_other_is_passed() -> None:
    async def scenario() -> None:
        read, write = os.pipe()
        script = "echo $HOME $X; ls /proc/self/fd; echo said >&7"
        child = spawn_with_fds(["/bin/sh", "-c", script], {7: write}, {"X": "x"})
        os.close(write)
        assert await child.wait() == 0
        assert child.output_tail.split() == ["x", "0", "1", "2", "3", "7"], "3 is the listing's own"
        assert os.read(read, 100) == b"said\n"
        os.close(read)

    asyncio.run(scenario())


def test_a_program_with_descriptors_that_is_not_there_is_named_and_costs_none() -> None:
    async def scenario() -> None:
        before = os.listdir("/proc/self/fd")
        with pytest.raises(NotFound, match="/no/such: No such file"):
            spawn_with_fds(["/no/such"], {3: 2}, {})
        assert os.listdir("/proc/self/fd") == before

    asyncio.run(scenario())
