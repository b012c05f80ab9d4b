"""Logger programs: what they get, when they count as ready, and that none is left."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from shim.errors import DeadlineExceeded, Internal, NotFound, ShimError
from shim.log import Log
from shim.record import Record
from shim.stdio.logger import LoggerProcess, Loggers
from shim.stdio.uri import Logger
from tests.sandbox.stack import until

# Copies fd 3 to its first argument's file and fd 4 to its second's.
COPY = "cat <&3 >$2 5>&- & cat <&4 >$4 5>&- & exec 5>&-; wait"


class Bench:
    """A record and loggers in a folder of their own. `program` writes a script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record = Record(str(folder), "ns", "s1", "")
        self.log = folder / "log"
        self._fd = os.open(self.log, os.O_WRONLY | os.O_CREAT)
        self.loggers = Loggers(self.record, Log(self._fd))

    def program(self, text: str, interpreter: str = "/bin/sh") -> str:
        path = self.folder / "logger"
        path.write_text(f"#!{interpreter}\n{text}\n")
        path.chmod(0o755)
        return str(path)

    async def start(self, text: str, *args: str, byte: bool = False, **more: str) -> LoggerProcess:
        return await self.loggers.start(Logger(self.program(text, **more), args, byte), "c1")

    def recorded(self) -> list[str]:
        return [item["role"] for item in json.loads((self.folder / "record.json").read_text())["processes"]]

    async def aclose(self) -> None:
        await self.loggers.aclose()
        os.close(self._fd)


def on_bench(test: Callable[[Bench], Awaitable[None]]) -> Callable[[Path], None]:
    """Run `test`; no task, no descriptor and no entry in the record may be left."""

    def run(tmp_path: Path) -> None:
        async def main() -> None:
            before = len(os.listdir("/proc/self/fd"))
            bench = Bench(tmp_path)
            async with asyncio.timeout(20):
                await test(bench)
                await bench.aclose()
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert not bench.record.processes
            assert len(os.listdir("/proc/self/fd")) == before

        asyncio.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


def hang_up(logger: LoggerProcess) -> None:
    os.close(logger.stdout)
    os.close(logger.stderr)


@on_bench
async def test_it_gets_both_outputs_to_their_end_and_ends_by_itself(bench: Bench) -> None:
    out, err = bench.folder / "out", bench.folder / "err"
    logger = await bench.start(COPY, "out", str(out), "err", str(err))
    assert bench.recorded() == ["logger"]
    os.write(logger.stdout, b"o" * 60_000)
    os.write(logger.stderr, b"e")
    hang_up(logger)
    logger.end()
    await logger.wait()
    assert (out.read_bytes(), err.read_bytes()) == (b"o" * 60_000, b"e")
    assert bench.recorded() == []


@on_bench
async def test_its_environment_and_its_descriptors_are_the_contracts_and_no_more(bench: Bench) -> None:
    seen = bench.folder / "seen"
    text = (
        "import json, os, sys\n"
        f"listing = os.listdir('/proc/self/fd')\n"
        "seen = [dict(os.environ), sorted(map(int, listing))[:7], sys.argv[1:]]\n"
        f"json.dump(seen, open({str(seen)!r}, 'w'))\n"
        "os.close(5)\n"
        "os.read(3, 1)\n"
    )
    logger = await bench.start(text, "k", "v w", interpreter=f"{sys.executable} -I")
    hang_up(logger)
    await logger.wait()
    environment, fds, arguments = json.loads(seen.read_text())
    environment.pop("LC_CTYPE", None)  # Python's own doing
    assert environment == {"CONTAINER_ID": "c1", "CONTAINER_NAMESPACE": "ns"}
    assert fds == [0, 1, 2, 3, 4, 5, 6], "6 is the listing's own"
    assert arguments == ["k", "v w"]


@on_bench
async def test_a_byte_makes_it_ready_too(bench: Bench) -> None:
    for byte in (False, True):
        logger = await bench.start("echo >&5; cat <&3 >/dev/null", byte=byte)
        hang_up(logger)
        await logger.wait()


@pytest.mark.parametrize(
    ("text", "byte", "failure"),
    [
        ("echo my reason >&2; exit 3", False, (Internal, "exit status 3: my reason")),
        ("exit 0", False, (Internal, "ended before it was ready")),
        ("exec 5>&-; sleep 100", True, (Internal, "without a byte")),
        ("sleep 100", False, (DeadlineExceeded, "not ready after 0.3 s")),
        ("sleep 2 & exit 0", False, (Internal, "ended before it was ready")),
    ],
)
def test_one_that_does_not_get_ready_is_an_error_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    byte: bool,
    failure: tuple[type[ShimError], str],
) -> None:
    if failure[0] is DeadlineExceeded:
        monkeypatch.setattr("shim.stdio.logger._START_S", 0.3)

    @on_bench
    async def test(bench: Bench) -> None:
        with pytest.raises(failure[0], match=failure[1]) as raised:
            await bench.start(text, byte=byte)
        assert str(bench.folder / "logger") in str(raised.value)
        assert bench.recorded() == []

    test(tmp_path)


@on_bench
async def test_a_program_that_cannot_be_run_is_named(bench: Bench) -> None:
    plain = bench.folder / "plain"
    plain.write_text("#!/bin/sh\n")
    for path, words in (("/no/logger", "No such file"), (str(plain), "Permission denied")):
        with pytest.raises(NotFound, match=f"{path}: {words}"):
            await bench.loggers.start(Logger(path, (), sends_byte=False), "c1")


@on_bench
async def test_a_caller_that_gives_up_leaves_none(bench: Bench) -> None:
    starting = asyncio.create_task(bench.start("sleep 100"))
    await until((bench.folder / "record.json").exists)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting


def test_one_that_does_not_end_is_told_to_and_then_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.stdio.logger._DRAIN_S", 0.1)
    monkeypatch.setattr("shim.stdio.logger._TERM_S", 1)

    @on_bench
    async def test(bench: Bench) -> None:
        told = bench.folder / "told"
        logger = await bench.start(f"trap 'echo >{told}' TERM; exec 5>&-; while :; do sleep 0.05; done")
        hang_up(logger)
        logger.end()
        logger.end()
        await logger.wait()
        assert told.exists()
        assert "does not end by itself" in bench.log.read_text()

    test(tmp_path)


@on_bench
async def test_one_that_dies_while_it_is_needed_is_told_of(bench: Bench) -> None:
    logger = await bench.start("exec 5>&-; read x <&3; echo broken >&2; exit 9")
    os.write(logger.stdout, b"\n")
    await logger.wait()
    with pytest.raises(BrokenPipeError):
        os.write(logger.stdout, b"the device finds this")
    hang_up(logger)
    assert "exit status 9: broken" in bench.log.read_text()
