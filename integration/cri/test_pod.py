"""One pod, many questions: what containers in it share, see and leave."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.cri.crictl import SHARED_PIDS, Crictl, Pod


@pytest.fixture(scope="module")
def pod(crictl: Crictl) -> Iterator[Pod]:
    dns = {"servers": ["192.0.2.53"], "searches": ["tests.svc.example"], "options": ["ndots:5"]}
    made = crictl.run_pod(hostname="web-0", dns_config=dns)
    yield made
    made.remove()


@pytest.fixture(scope="module")
def box(pod: Pod) -> str:
    return pod.run("sleep", "100000")


def test_hostname_and_name_servers_are_the_pod_s(crictl: Crictl, box: str) -> None:
    assert crictl.sh(box, "hostname; cat /proc/sys/kernel/hostname") == "web-0\nweb-0\n"
    lines = crictl.sh(box, "cat /etc/resolv.conf").splitlines()
    assert sorted(lines) == ["nameserver 192.0.2.53", "options ndots:5", "search tests.svc.example"]


def test_two_containers_talk_over_localhost(pod: Pod, crictl: Crictl, box: str) -> None:
    other = pod.run("sh", "-c", "echo from the other | nc -l -p 8080")
    heard = crictl.sh(box, "while ! nc 127.0.0.1 8080 2>/dev/null </dev/null; do sleep 0.1; done")
    assert heard == "from the other\n"
    assert crictl.ended(other)["exitCode"] == 0


def test_log_lines_and_exit_codes_are_exact(pod: Pod, crictl: Crictl) -> None:
    container = pod.run("sh", "-c", "echo one; sleep 0.3; echo two >&2; sleep 0.3; printf three; exit 42")
    status = crictl.ended(container)
    assert (status["exitCode"], status["reason"]) == (42, "Error")
    assert pod.log(container) == [("stdout", "one"), ("stderr", "two"), ("stdout", "three")]
    shown = crictl("logs", container).ok()
    assert (shown.text, shown.err) == ("one\nthree", "two\n")
    crictl("rm", container).ok()


def test_exec_has_the_process_s_streams_and_exit_code(crictl: Crictl, box: str) -> None:
    done = crictl.exec(box, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.out, done.err.splitlines()[0]) == (b"out\n", "err")
    assert "command terminated with exit code 7" in done.err
    assert crictl.exec(box, "tr", "a-z", "A-Z", options=["-i"], stdin=b"a stream\n").ok().out == b"A STREAM\n"
    synchronous = crictl.exec(box, "sh", "-c", "echo out; echo err >&2", options=["--sync"]).ok()
    assert synchronous.text.split() == ["out", "err"]  # crictl prints both to its stdout


def test_a_terminal_works(crictl: Crictl, box: str) -> None:
    terminal = crictl.terminal("exec", "-it", box, "sh")
    terminal.write(b"tty; echo result $((6 * 7))\n")
    terminal.until(b"/dev/pts/")
    terminal.until(b"result 42")
    terminal.write(b"exit 3\n")
    terminal.finish()


def test_attach_sees_output_and_gives_input(pod: Pod, crictl: Crictl) -> None:
    container = pod.run("sh", "-c", "read line; echo got $line; sleep 1; exit 5", stdin=True, stdin_once=True)
    attached = crictl("attach", "-i", container, stdin=b"hello\n")
    assert attached.out == b"got hello\n"
    assert crictl.ended(container)["exitCode"] == 5
    assert pod.log(container) == [("stdout", "got hello")]


def test_containers_come_and_go_while_the_pod_stays(pod: Pod, crictl: Crictl, box: str) -> None:
    container = pod.run("sleep", "100000")
    crictl("stop", "--timeout", "0", container).ok()
    assert crictl.status(container)["exitCode"] == 137
    crictl("rm", container).ok()
    assert crictl.sh(box, "echo still here") == "still here\n"


def test_stop_gives_a_process_time_to_end(pod: Pod, crictl: Crictl) -> None:
    script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    container = pod.run("sh", "-c", script)
    while ("stdout", "ready") not in pod.log(container):
        pass
    crictl("stop", "--timeout", "30", container).ok()
    assert crictl.status(container)["exitCode"] == 3
    assert pod.log(container)[-1] == ("stdout", "bye")


def test_ipc_and_shm_are_the_pod_s_but_processes_are_not(pod: Pod, crictl: Crictl, box: str) -> None:
    other = pod.run("sleep", "100000")
    crictl.sh(box, "echo shared >/dev/shm/note")
    assert crictl.sh(other, "cat /dev/shm/note; rm /dev/shm/note") == "shared\n"
    names = "for kind in ipc uts net pid mnt; do readlink /proc/self/ns/$kind; done"
    one, two = (crictl.sh(container, names).split() for container in (box, other))
    assert one[:3] == two[:3]
    assert one[3] != two[3] and one[4] != two[4]
    assert "100000" not in crictl.sh(other, "ps -o pid,args | grep -v grep | grep -v ' 1 sleep' || true")
    crictl("rm", "--force", other).ok()


def test_a_program_that_is_not_there_fails_the_start_and_nothing_else(
    pod: Pod, crictl: Crictl, box: str
) -> None:
    container = pod.container("no-such-program")
    done = crictl("start", container)
    assert done.code != 0
    assert "no-such-program" in done.err and "executable file not found in $PATH" in done.err
    status = crictl.status(container)
    assert (status["state"], status["exitCode"], status["reason"]) == ("CONTAINER_EXITED", 128, "StartError")
    crictl("rm", container).ok()
    assert crictl.sh(box, "echo fine") == "fine\n"


def test_a_volume_is_shared_and_read_only_where_asked(pod: Pod, crictl: Crictl, tmp_path: Path) -> None:
    def mount(read_only: bool) -> list[dict[str, object]]:
        return [{"host_path": str(tmp_path), "container_path": "/data", "readonly": read_only}]

    writer = pod.run("sh", "-c", "echo written >/data/file", mounts=mount(read_only=False))
    assert crictl.ended(writer)["exitCode"] == 0
    script = "cat /data/file; echo x 2>/dev/null >/data/file || echo refused"
    reader = pod.run("sh", "-c", script, mounts=mount(read_only=True))
    assert crictl.ended(reader)["exitCode"] == 0
    assert [text for stream, text in pod.log(reader) if stream == "stdout"] == ["written", "refused"]
    assert (tmp_path / "file").read_text() == "written\n"


def test_a_shared_pid_namespace_is_the_pod_s_but_signals_are_a_container_s(crictl: Crictl) -> None:
    pod = crictl.run_pod(linux=SHARED_PIDS)
    one, two = (pod.run("sleep", "1000000", linux=SHARED_PIDS) for _ in range(2))
    names = [crictl.sh(container, "readlink /proc/self/ns/pid") for container in (one, two)]
    assert names[0] == names[1]
    first, *others = crictl.sh(one, "ps -o pid,args | sed 's/^ *//' | grep sleep | grep -v grep").splitlines()
    if crictl.daemon.sandboxer == "podsandbox":
        assert first == "1 sleep 2147483647"  # the pause container's
    else:
        others.insert(0, first)  # process 1 is the agent's
    assert [line.split(" ", 1)[1] for line in others] == ["sleep 1000000"] * 2
    crictl("stop", "--timeout", "0", one).ok()
    assert crictl.sh(two, "ps -o args | grep -c '^sleep 1000000'") == "1\n"
    pod.remove()
