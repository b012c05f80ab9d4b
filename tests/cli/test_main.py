import subprocess
import sys

import pytest

from shim.bootstrap.info import VERSION

from .conftest import Tool
from .test_exec import CODE
from .test_template import PROGRAM


def test_help_lists_every_command(tool: Tool) -> None:
    done = tool("--help")
    for name in ("check", "config", "env", "exec", "gc", "logs", "metrics", "ps", "template"):
        assert f"\n  {name} " in done.out
        assert tool(name, "--help").code == 0
    assert done.code == 0 and tool("--version").out.strip().endswith(VERSION)


@pytest.mark.parametrize(
    "args", [("frobnicate",), ("ps", "--frobnicate"), ("logs",), ("config", "containerd", "--version", "9")]
)
def test_a_wrong_call_is_told_with_status_2(tool: Tool, args: tuple[str, ...]) -> None:
    done = tool(*args)
    assert done.code == 2 and done.out == "" and "Error: " in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    "command", [("ps",), ("logs",), ("exec",), ("metrics",), ("config", "show", "--sandbox")]
)
def test_an_unknown_sandbox_is_one_line_and_status_1(tool: Tool, command: tuple[str, ...]) -> None:
    tool.record("s1")
    done = tool(*command, "s2")
    assert done.code == 1 and done.out == ""
    assert done.err == "kata-py: sandbox 's2': there is none (kata-py ps lists what there is)\n"


def test_a_reader_that_has_seen_enough_is_no_reason_to_complain() -> None:
    done = subprocess.run(
        ["sh", "-c", f"{PROGRAM} env | head -n 1"], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[kata_py]\n" and done.stderr == ""


def test_the_shell_can_complete_commands() -> None:
    done = subprocess.run(
        [PROGRAM],
        env={
            "_KATA_PY_COMPLETE": "bash_complete",
            "COMP_WORDS": "kata-py lo",
            "COMP_CWORD": "1",
            "PATH": "/usr/bin",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "plain,logs\n"


def test_the_shell_can_complete_sandboxes(tool: Tool) -> None:
    for name in ("web-1", "web-2", "db"):
        tool.record(name)
    words = {"_KATA_PY_COMPLETE": "bash_complete", "COMP_WORDS": "kata-py logs we", "COMP_CWORD": "2"}
    command = [sys.executable, "-c", CODE, str(tool.folder / "run")]
    done = subprocess.run(command, env=words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["plain,web-1", "plain,web-2"]


def test_the_daemon_s_command_imports_no_other(tool: Tool) -> None:
    """`kata-py template create` is started by shims: what it does not need it does not load."""
    heavy = "[m for m in sys.modules if m in ('psutil', 'betterproto')]"
    code = f"import sys, shim.cli.main, shim.cli.template; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
