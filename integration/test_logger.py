"""Output that goes to files and to logger programs (`ctr run --log-uri`) instead of FIFOs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from integration import process
from integration.conftest import assert_whole
from integration.ctr import Ctr, Done
from integration.sandbox import members, wait_gone
from integration.until import until

# stdout and stderr to files in the folder that it is told, and what it knows of itself.
LOGGER = """#!/bin/sh
cat <&3 >$2/out 5>&- &
cat <&4 >$2/err 5>&- &
exec 5>&-
wait
echo $CONTAINER_ID $CONTAINER_NAMESPACE $1 >$2/whole
"""


@pytest.fixture
def folder(ctr: Ctr) -> Iterator[Path]:
    """Where the leak check finds who works there: below the test run's folder."""
    path = ctr.daemon.root / "logs"
    path.mkdir()
    yield path
    for file in path.iterdir():
        file.unlink()
    path.rmdir()


def logger(folder: Path, text: str = LOGGER, name: str = "logger") -> str:
    program = folder / name
    program.write_text(text)
    program.chmod(0o755)
    return f"binary://{program}?folder={folder}"


@pytest.mark.short
def test_a_file_gets_both_outputs_behind_what_it_has(ctr: Ctr, folder: Path) -> None:
    log = folder / "log"
    log.write_bytes(b"before\n")
    shell = "cat /payload; echo [error] >&2"
    ctr.run("sh", "-c", shell, options=["--rm", "--log-uri", f"file://{log}"]).ok()
    content = log.read_bytes()
    assert content.startswith(b"before\n")
    assert content.count(b"[error]\n") == 1
    assert_whole(content.removeprefix(b"before\n").replace(b"[error]\n", b""))


@pytest.mark.short
def test_a_logger_has_every_byte_before_the_task_is_gone(ctr: Ctr, folder: Path) -> None:
    container = ctr.new_id()
    options = ["--rm", "--log-uri", logger(folder)]
    shell = "cat /payload; echo error >&2; exit 7"
    done = ctr.run("sh", "-c", shell, options=options, container=container)
    assert done.code == 7
    assert (folder / "whole").read_text() == f"{container} {ctr.daemon.namespace} folder\n"
    assert_whole((folder / "out").read_bytes())
    assert (folder / "err").read_bytes() == b"error\n"


@pytest.mark.vm
def test_what_cannot_be_logged_to_is_refused_with_its_reason(ctr: Ctr, folder: Path) -> None:
    failing = logger(folder, "#!/bin/sh\necho the disk is gone >&2\nexit 3\n")
    for uri, words in (
        ("syslog:///here", "unknown scheme 'syslog'"),
        ("binary:///no/such/logger", "/no/such/logger: No such file"),
        (failing, "exit status 3: the disk is gone"),
    ):
        done = ctr.run("true", options=["--log-uri", uri])
        assert done.code != 0
        assert words in done.err


@pytest.mark.once
@pytest.mark.vm
def test_a_logger_has_its_time_to_begin_and_to_end_and_no_more(ctr: Ctr, folder: Path) -> None:
    """Both at once, since it takes long."""
    mute = logger(folder, "#!/bin/sh\nexec sleep 1000\n", "mute")
    deaf = "#!/bin/sh\ntrap 'echo told >$2/told' TERM\nexec 5>&-\nwhile :; do sleep 0.1; done\n"

    def run(uri: str) -> tuple[Done, float]:
        began = time.monotonic()
        return ctr.run("true", options=["--rm", "--log-uri", uri]), time.monotonic() - began

    with ThreadPoolExecutor(2) as pool:
        (begun, begun_s), (ended, ended_s) = pool.map(run, (mute, logger(folder, deaf, "deaf")))
    assert begun.code != 0 and f"logger {folder}/mute: not ready after 10 s" in begun.err
    assert 10 < begun_s < 16
    assert ended.code == 0 and (folder / "told").read_text() == "told\n"
    assert 8 < ended_s < 14, "6 s of its own, 2 s from SIGTERM to SIGKILL"
    assert not [item for item in process.every().values() if str(folder) in item.command]


@pytest.mark.vm
def test_a_killed_shim_leaves_no_logger_and_the_logger_has_what_was_written(ctr: Ctr, folder: Path) -> None:
    container = ctr.detached("sh", "-c", "echo last words; sleep 1000", options=["--log-uri", logger(folder)])
    until("it has printed", lambda: (folder / "out").read_bytes() == b"last words\n")
    everyone = members(ctr, container)
    loggers = [item for item in everyone.values() if str(folder / "logger") in item.command]
    assert loggers
    (shim,) = [item for item in everyone.values() if item.role == "shim"]
    os.kill(shim.pid, signal.SIGKILL)
    wait_gone(everyone.values(), timeout=8)
    until("the logger was not cut off", (folder / "whole").exists)
    assert not [item for item in process.every().values() if str(folder) in item.command]


@pytest.mark.vm
def test_a_container_outlives_its_logger(ctr: Ctr, folder: Path) -> None:
    uri = logger(folder, "#!/bin/sh\nexec 5>&-\nread line <&3\nexit 9\n")
    container = ctr.detached(
        "sh", "-c", "echo line; cat /payload; cat /payload; exit 5", options=["--log-uri", uri]
    )
    until("it has ended", lambda: ctr.tasks()[container][1] == "STOPPED")
    assert "exit code 5" in ctr("task", "rm", container).err
