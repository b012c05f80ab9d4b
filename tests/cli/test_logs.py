import shutil
from pathlib import Path

import pytest

from shim.log import encode
from shim.logfile import CONSOLE_LOG, SHIM_LOG

from .conftest import Tool


def written(tool: Tool) -> None:
    folder = Path(tool.record().run_dir)
    shim = [encode(n * 10**9, "info", f"shim {n}", {"sandbox": "s1"}) for n in (1, 3)]
    console = [encode(n * 10**9, "info", text, {}) for n, text in ((2, 'a "b" \\ \x1b[2J'), (4, "login"))]
    (folder / f"{SHIM_LOG}.1").write_bytes(b"of a line\n" + shim[0])
    (folder / SHIM_LOG).write_bytes(shim[1])
    (folder / CONSOLE_LOG).write_bytes(b"".join(console))


def test_both_logs_are_told_in_the_order_of_time(tool: Tool) -> None:
    written(tool)
    assert tool("logs", "s1").out.splitlines() == [
        '00:00:01.000 shim    info "shim 1" sandbox=s1',
        '00:00:02.000 console a "b" \\ \\x1b[2J',
        '00:00:03.000 shim    info "shim 3" sandbox=s1',
        "00:00:04.000 console login",
    ]


def test_one_of_them_or_the_end_of_it(tool: Tool) -> None:
    written(tool)
    assert tool("logs", "s1", "--console").out.splitlines()[1] == "00:00:04.000 login"
    assert tool("logs", "s1", "--shim", "--tail", "1").out == '00:00:03.000 info "shim 3" sandbox=s1\n'
    assert tool("logs", "s1", "--tail", "0").out == ""
    assert [item["source"] for item in tool("logs", "s1", "--json", "--tail", "2").json] == [
        "shim",
        "console",
    ]


def test_following_shows_what_comes_until_the_sandbox_is_gone(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tool)
    folder = tool.folder / "run/ns/s1"
    happens = iter(
        [
            lambda: (folder / CONSOLE_LOG).write_bytes(encode(5 * 10**9, "info", "new", {})),
            lambda: None,
            lambda: shutil.rmtree(folder),
        ]
    )
    monkeypatch.setattr("time.sleep", lambda _: next(happens)())
    done = tool("logs", "s1", "--console", "-f")
    assert done.code == 0 and done.out.splitlines()[1:] == ["00:00:04.000 login", "00:00:05.000 new"]


def test_a_sandbox_without_a_line_says_nothing(tool: Tool) -> None:
    tool.record()
    done = tool("logs", "s1")
    assert (done.code, done.out, done.err) == (0, "", "")
