"""`kata-py` against a sandbox that runs, and the ways in which settings reach a shim."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.ctr import Ctr, Terminal

pytestmark = pytest.mark.vm

SAID = b"what the container said\n"
HYPERVISOR = "io.katacontainers.config.hypervisor."


@pytest.fixture(scope="module")
def box(ctr: Ctr) -> Iterator[str]:
    """A container that has said SAID, with a debug console in its guest. It boots: for that setting there is no
    template."""
    ctr.daemon.set_for_shims('debug_console = true\ntemplate = "off"\n')
    container = ctr.new_id()
    child = ctr.spawn(
        *ctr.run_args(container, "sh", "-c", f"echo {SAID.decode().strip()}; exec sleep 100000")
    )
    try:
        assert child.stdout is not None and child.stdout.read(len(SAID)) == SAID
        yield container
    finally:
        ctr.daemon.set_for_shims("")
        ctr.remove(container)
        child.communicate(timeout=20)


def tool(ctr: Ctr, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [str(ctr.daemon.shims / "kata-py"), *args]
    return subprocess.run(
        command, env=ctr.daemon.env, input=stdin, capture_output=True, timeout=30, check=False
    )


def as_json(ctr: Ctr, *args: str) -> Any:
    return json.loads(ctr.daemon.tool(*args, "--json"))


def test_ps_tells_what_runs(ctr: Ctr, box: str) -> None:
    (found,) = as_json(ctr, "ps", "--namespace", ctr.daemon.namespace)
    assert (found["sandbox"], found["state"], found["origin"]) == (box, "up", "boot")
    assert found["memory_mib"] == 256 and 0 < found["up_s"] < 60 and found["problem"] == ""
    ((container, pids),) = [(item, ctr.tasks()[box]) for item in found["containers"]]
    by_role = {item["role"]: item for item in found["processes"]}
    assert set(by_role) == {"daemon", "hypervisor", "virtiofsd", "vsock device"}
    assert by_role["hypervisor"]["pid"] == pids[0] and by_role["hypervisor"]["memory_bytes"] > 50 << 20
    assert container["id"] == box
    (process,) = container["processes"]
    assert process["state"] == "running" and process["streams"]["stdout"]["from_guest_bytes"] == len(SAID)


def test_ps_is_a_table_for_people(ctr: Ctr, box: str) -> None:
    lines = ctr.daemon.tool("ps", box, "-n", ctr.daemon.namespace).splitlines()
    assert [lines[1].split()[n] for n in (0, 1, 3, 7)] == [
        box,
        ctr.daemon.namespace,
        str(ctr.tasks()[box][0]),
        "up",
    ]
    assert lines[2].split() == [box, "running"]
    streams = ctr.daemon.tool("ps", "--io", box, "-n", ctr.daemon.namespace).splitlines()
    assert [box, "stdout", str(len(SAID)), "0", "0"] in [line.split() for line in streams]
    assert max(len(line) for line in lines + streams) <= 80


def test_metrics_are_prometheus(ctr: Ctr, box: str) -> None:
    labels = f'{{namespace="{ctr.daemon.namespace}",sandbox="{box}"'
    samples = dict(
        line.rsplit(" ", 1)
        for line in ctr.daemon.tool("metrics", box, "-n", ctr.daemon.namespace).splitlines()
        if not line.startswith("#")
    )
    assert samples[f"kata_py_sandbox_up{labels}}}"] == "1"
    assert samples[f"kata_py_sandbox_vm_memory_bytes{labels}}}"] == str(256 << 20)
    stream = f',container="{box}",exec="",stream="stdout",direction="from_guest"}}'
    assert samples[f"kata_py_stream_bytes_total{labels}{stream}"] == str(len(SAID))
    assert 4096 <= int(samples[f'kata_py_container_memory_bytes{labels},container="{box}"}}']) < 256 << 20
    assert samples[f'kata_py_container_pids{labels},container="{box}"}}'] == "1"
    assert float(samples[f'kata_py_process_cpu_seconds_total{labels},role="hypervisor"}}']) > 0.1


def test_exec_is_a_shell_in_the_guest_and_the_console_is_kept(ctr: Ctr, box: str) -> None:
    script = b"cat /proc/1/comm; cut -d' ' -f1 /proc/$PPID/stat; cat /proc/cmdline; exit 3\n"
    done = tool(ctr, "exec", box, "-n", ctr.daemon.namespace, stdin=script)
    said = done.stdout.replace(b"\r", b"").splitlines()
    assert done.returncode == 3, done.stderr
    assert b"1" in said, "its parent is the agent, pid 1"
    assert any(b"agent.debug_console_vport=1026" in line for line in said)
    console = ctr.daemon.tool("logs", "--console", box, "-n", ctr.daemon.namespace)
    assert "agent ready" in console and "debug console opened" in console
    shim = as_json(ctr, "logs", "--shim", box, "-n", ctr.daemon.namespace)
    assert any("sandbox is up" in item["line"] for item in shim)
    both = ctr.daemon.tool("logs", box, "-n", ctr.daemon.namespace, "--tail", "3").splitlines()
    assert len(both) == 3 and both == sorted(both)


def test_exec_on_a_terminal_has_its_size(ctr: Ctr, box: str) -> None:
    words = [str(ctr.daemon.shims / "kata-py"), "exec", box, "-n", ctr.daemon.namespace]
    terminal = Terminal(words, 33, 101)
    terminal.until(b"# ")
    terminal.write(b"stty size\r")
    terminal.until(b"33 101")
    terminal.resize(44, 99)
    terminal.write(b"sleep 0.3; stty size; kill -9 $$\r")
    terminal.until(b"44 99")
    assert terminal.finish() == 137


def test_config_shows_the_sandbox_s_own_settings(ctr: Ctr, box: str) -> None:
    shown = as_json(ctr, "config", "show", "--sandbox", box, "-n", ctr.daemon.namespace)
    assert shown["debug_console"] == {"value": True, "origin": str(ctr.daemon.root / "config.d/test.toml")}
    assert shown["kernel"]["origin"] == str(ctr.daemon.settings) and shown["vcpus"]["origin"] == "default"
    ours = as_json(ctr, "env")
    assert ours["settings"]["kernel"] == shown["kernel"]["value"]
    assert ours["kata_py"]["settings_files"][0] == str(ctr.daemon.settings)
    found = {item["what"]: item["state"] for item in json.loads(tool(ctr, "check", "--json").stdout)}
    assert (found["QEMU"], found["virtiofsd"], found["kernel, image"]) == ("ok", "ok", "ok")


def test_a_shim_that_hangs_hides_nobody(ctr: Ctr, box: str) -> None:
    (found,) = as_json(ctr, "ps", box, "-n", ctr.daemon.namespace)
    daemon = next(item["pid"] for item in found["processes"] if item["role"] == "daemon")
    os.kill(daemon, signal.SIGSTOP)
    try:
        began = time.monotonic()
        done = tool(ctr, "ps", box, "-n", ctr.daemon.namespace)
        assert time.monotonic() - began < 5
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert b"silent" in done.stdout and f"(pid {daemon}) does not answer".encode() in done.stderr
    assert str(ctr.tasks()[box][0]).encode() in done.stdout, "what the kernel knows is told all the same"


@pytest.mark.parametrize("command", ["ps", "logs", "exec", "metrics"])
def test_a_sandbox_that_is_not_there_is_told_in_a_line(ctr: Ctr, command: str) -> None:
    done = tool(ctr, command, "no-such-thing")
    assert done.returncode == 1
    assert done.stderr.startswith(b"kata-py: sandbox 'no-such-thing': there is none")
    assert done.stderr.count(b"\n") == 1


# -- how settings reach a shim -------------------------------------------------------------------------------


def memory_kib(said: str) -> int:
    return int(next(line.split()[1] for line in said.splitlines() if line.startswith("MemTotal")))


@pytest.mark.short
def test_ctr_names_a_settings_file(ctr: Ctr, tmp_path: Path) -> None:
    path = tmp_path / "mine/k.toml"
    (tmp_path / "mine/config.d").mkdir(parents=True)
    path.write_text(ctr.daemon.settings.read_text())
    (tmp_path / "mine/config.d/a.toml").write_text('memory_mib = 200\ntemplate = "off"\n')
    options = ["--rm", "--runtime-config-path", str(path)]
    assert 128 << 10 < memory_kib(ctr.run("cat", "/proc/meminfo", options=options).ok().text) < 200 << 10
    (tmp_path / "mine/config.d/x.toml").write_text("memory = 5\n")
    done = ctr.run("true", options=options)
    assert done.code != 0 and f"{tmp_path}/mine/config.d/x.toml: unknown setting 'memory'" in done.err


@pytest.mark.short
def test_an_annotation_sizes_the_vm_or_is_refused(ctr: Ctr) -> None:
    if "--annotation" not in ctr("run", "--help").ok().text:
        pytest.skip("this ctr has no --annotation")

    def run(name: str, value: str) -> Any:
        return ctr.run(
            "cat", "/proc/meminfo", options=["--rm", "--annotation", f"{HYPERVISOR}{name}={value}"]
        )

    ctr.daemon.set_for_shims('template = "off"\n')
    try:
        assert 128 << 10 < memory_kib(run("default_memory", "200").ok().text) < 200 << 10
        for name, value, why in (
            ("default_memory", "much", "want a whole number from 128"),
            ("kernel", "/my/own", "is not allowed: enable_annotations has default_memory, default_vcpus"),
        ):
            done = run(name, value)
            assert done.code != 0 and f"annotation {HYPERVISOR}{name}" in done.err and why in done.err
    finally:
        ctr.daemon.set_for_shims("")


def test_the_guest_writes_to_what_it_was_given_and_nowhere_beside(ctr: Ctr, box: str) -> None:
    """Root in the guest, not in a container. Beside is memory of the host's, and where links lead the shim astray."""
    there = "/run/kata-containers/shared/containers"
    script = f"cd {there}; touch {box}-9; ln -s /etc {box}-9; mkdir {box}-9; touch {box}-1/mine; exit\n"
    said = tool(ctr, "exec", box, stdin=script.encode()).stdout.decode()
    (run_dir,) = Path("/run/kata-py", ctr.daemon.namespace).iterdir()
    processes = json.loads(Path(run_dir, "record.json").read_text())["processes"]
    daemon = next(item["pid"] for item in processes if item["role"] == "daemon")
    share = Path(f"/proc/{daemon}/root{run_dir}/share")
    assert said.count("Read-only file system") == 3, said
    assert os.listdir(share) == [f"{box}-1"]
    assert (share / f"{box}-1/mine").exists()
