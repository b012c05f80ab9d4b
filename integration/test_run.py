"""`ctr run` in the foreground: output, terminal, stdin, exit status, errors."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from integration.conftest import import_image
from integration.ctr import Ctr


@pytest.mark.short
def test_output_and_errors_arrive_on_their_own_streams(ctr: Ctr) -> None:
    done = ctr.run("sh", "-c", "echo to stdout; echo to stderr >&2").ok()
    assert done.out == b"to stdout\n"
    assert done.err == "to stderr\n"


@pytest.mark.short
def test_terminal_has_its_size_and_takes_input(ctr: Ctr) -> None:
    # ctr sets the size after the start and at SIGWINCH, so the container waits for it.
    shell = """
        tty
        until [ "$(stty size)" = "31 97" ]; do sleep 0.1; done; echo first size
        read line; echo "got $line"
        until [ "$(stty size)" = "40 120" ]; do sleep 0.1; done; echo second size
        exit 5
    """
    arguments = ctr.run_args(ctr.new_id(), "sh", "-c", shell, options=["--rm", "-t"])
    terminal = ctr.terminal(*arguments, rows=31, columns=97)
    terminal.until(b"pts/")
    terminal.until(b"first size\r")
    terminal.write(b"typed\r")
    terminal.until(b"got typed\r")
    terminal.resize(40, 120)
    terminal.until(b"second size\r")
    assert terminal.finish() == 5


@pytest.mark.short
def test_stdin_is_read_to_its_end(ctr: Ctr) -> None:
    shell = "echo ready; wc"
    child = ctr.spawn(*ctr.run_args(ctr.new_id(), "sh", "-c", shell, options=["--rm"]), stdin=subprocess.PIPE)
    assert child.stdin and child.stdout
    assert child.stdout.readline() == b"ready\n"
    out, _ = child.communicate(b"aaa\nbbb\nccc\n", timeout=60)
    assert out.split() == [b"3", b"3", b"12"]
    assert child.returncode == 0


@pytest.mark.short
@pytest.mark.vm
def test_stdin_that_ends_before_the_task_exists_is_read_to_its_end(ctr: Ctr) -> None:
    """ctr sends no CloseIO when its stdin ends before Create has returned, and with runc this test hangs for
    that reason; a shim that opens the FIFO only when the task starts never lets ctr come that far."""
    assert ctr.run("wc", stdin=b"aaa\nbbb\nccc\n").ok().out.split() == [b"3", b"3", b"12"]


@pytest.mark.short
def test_without_stdio_a_reader_of_stdin_ends_at_once(ctr: Ctr) -> None:
    ctr.run("cat", options=["--rm", "--null-io"]).ok()


@pytest.mark.parametrize("code", [0, 1, pytest.param(77, marks=pytest.mark.short), 137])
def test_exit_status_is_the_command_s(ctr: Ctr, code: int) -> None:
    assert ctr.run("sh", "-c", f"exit {code}").code == code


@pytest.mark.short
def test_missing_program_is_a_clear_error(ctr: Ctr) -> None:
    done = ctr.run("/no/such/program")
    assert done.code != 0
    assert "/no/such/program" in done.err
    assert "no such file" in done.err or "not found" in done.err


def test_missing_mount_source_is_a_clear_error(ctr: Ctr) -> None:
    options = ["--rm", "--mount", "type=bind,src=/no/such/source,dst=/mnt,options=rbind:ro"]
    done = ctr.run("true", options=options)
    assert done.code != 0
    assert "/no/such/source" in done.err


def test_an_id_can_be_used_again(ctr: Ctr) -> None:
    container = ctr.new_id()
    assert ctr.run("echo", "first", container=container).ok().text == "first\n"
    assert ctr.run("echo", "second", container=container).ok().text == "second\n"


def test_logs_opened_by_name_reach_the_streams(ctr: Ctr) -> None:
    done = ctr.run("nginx-style").ok()
    assert done.text.split() == ["access", "device", "number", "again"]
    assert done.err == "error\n"


def test_environment_and_directory_are_set(ctr: Ctr) -> None:
    options = ["--rm", "--env", "A=b c", "--cwd", "/var/log"]
    done = ctr.run("sh", "-c", "echo $A; pwd", options=options).ok()
    assert done.text.splitlines() == ["b c", "/var/log"]


def test_what_a_container_writes_is_gone_with_it(ctr: Ctr) -> None:
    ctr.run("sh", "-c", "echo x >/written; rm /payload; cat /written").ok()
    assert ctr.run("ls", "/").ok().text.split().count("payload") == 1


def test_native_snapshots_work_as_overlays_do(ctr: Ctr, image: Path) -> None:
    native = Ctr(ctr.daemon, ctr.runtime, "native")
    native.made = ctr.made
    native._number = ctr._number
    import_image(native, image, "native")
    assert native.run("sh", "-c", "echo written >/file; cat /file").ok().text == "written\n"


def test_a_plain_folder_can_be_the_root(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("proc", "sys", "dev", "etc"):
        (tmp_path / name).mkdir()
    copy = ctr.run("cat", "/bin/busybox").ok()
    (tmp_path / "bin/busybox").write_bytes(copy.out)
    (tmp_path / "bin/busybox").chmod(0o755)
    done = ctr.run(
        "/bin/busybox", "sh", "-c", "echo from guest >/note; /bin/busybox cat /note", rootfs=tmp_path
    )
    assert done.ok().text == "from guest\n"
    assert (tmp_path / "note").read_text() == "from guest\n"


def test_bind_mounts_show_the_host_s_files_and_honour_ro(ctr: Ctr, tmp_path: Path) -> None:
    (tmp_path / "read").mkdir()
    (tmp_path / "read/file").write_text("of the host\n")
    (tmp_path / "write").mkdir()
    options = ["--rm"]
    options += ["--mount", f"type=bind,src={tmp_path}/read,dst=/read,options=rbind:ro"]
    options += ["--mount", f"type=bind,src={tmp_path}/write,dst=/write,options=rbind:rw"]
    shell = "cat /read/file; echo from guest >/write/file; echo no >/read/file || echo refused"
    done = ctr.run("sh", "-c", shell, options=options).ok()
    assert done.text == "of the host\nrefused\n"
    assert (tmp_path / "write/file").read_text() == "from guest\n"
    assert (tmp_path / "read/file").read_text() == "of the host\n"


@pytest.mark.short
@pytest.mark.vm
def test_containerd_is_told_what_the_runtime_can_do(ctr: Ctr) -> None:
    if ctr.daemon.version != "2":
        pytest.skip("containerd 1 does not ask")
    told = json.loads(ctr("plugins", "inspect-runtime", "--runtime", ctr.runtime).ok().out)
    assert told["Name"] == ctr.runtime
    assert "rro" in told["Features"]["mountOptions"]
    assert "user" in told["Features"]["linux"]["namespaces"]
    assert told["Features"]["linux"]["mountExtensions"]["idmap"]["enabled"]
