"""The console: every line of a calm guest, little of a flooding one, nothing left behind."""

from __future__ import annotations

import asyncio
import os

from shim.hypervisor.qemu.console import Console


def test_lines_arrive_and_the_text_is_kept() -> None:
    async def scenario() -> None:
        lines: list[str] = []
        first = asyncio.Event()

        def on_line(line: str) -> None:
            lines.append(line)
            first.set()

        console = Console(on_line)
        with console.writer() as fd:
            os.write(fd, b"one\r\ntwo\r\nhal")
            await first.wait()
            os.write(fd, b"f\r\nlast")
        console.close()
        console.close()
        assert lines == ["one", "two", "half", "last"]
        assert console.text == "one\r\ntwo\r\nhalf\r\nlast"

    asyncio.run(scenario())


def test_of_a_flood_some_lines_are_told_and_the_rest_counted() -> None:
    async def scenario() -> None:
        lines: list[str] = []
        console = Console(lines.append)
        with console.writer() as fd:
            os.write(fd, b"".join(b"line %d\n" % number for number in range(1000)))
        console.close()
        assert lines[:2] == ["line 0", "line 1"]
        assert lines[-1] == "(900 lines left out)"
        assert len(lines) == 101
        assert console.text.endswith("line 999\n")

    asyncio.run(scenario())


def test_a_full_pipe_never_blocks_the_writer() -> None:
    async def scenario() -> None:
        console = Console(lambda line: None)
        with console.writer() as fd:
            written = 0
            try:
                while True:
                    written += os.write(fd, b"x" * 4096)
            except BlockingIOError:
                pass
            assert written == 65536
        console.close()

    asyncio.run(scenario())


def test_a_console_that_was_never_written_to_leaves_no_fd() -> None:
    async def scenario() -> None:
        before = len(os.listdir("/proc/self/fd"))
        Console(lambda line: None).close()
        assert len(os.listdir("/proc/self/fd")) == before

    asyncio.run(scenario())
