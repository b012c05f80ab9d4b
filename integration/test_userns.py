"""A container with ids of its own (`ctr run --uidmap --gidmap`): what its root owns, is, and may."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from integration.ctr import Ctr

MAPPED = ("--uidmap", "0:100000:65536", "--gidmap", "0:200000:65536")


@pytest.fixture(scope="module")
def box(ctr: Ctr) -> Iterator[str]:
    container = ctr.new_id()
    ctr.daemon.root.chmod(0o711)  # runc's way to the root begins as such a user
    try:
        ctr(*ctr.run_args(container, "sleep", "100000", options=["-d", "--null-io", *MAPPED])).ok()
        yield container
    finally:
        ctr.remove(container)


def sh(ctr: Ctr, box: str, script: str) -> str:
    return ctr.exec(box, "sh", "-c", script).ok().text


def test_its_files_are_its_own_under_other_numbers(ctr: Ctr, box: str) -> None:
    assert sh(ctr, box, "cat /proc/self/uid_map").split() == ["0", "100000", "65536"]
    assert sh(ctr, box, "cat /proc/self/gid_map").split() == ["0", "200000", "65536"]
    assert sh(ctr, box, "stat -c %u:%g / /bin/busybox /proc/1 /dev/pts").split() == ["0:0"] * 4
    name = f"made-in-{box}"
    assert sh(ctr, box, f"id -u; touch /{name}; chown 5:6 /{name}; stat -c %u:%g /{name}") == "0\n5:6\n"
    on_disk = [path.stat() for path in ctr.daemon.root.rglob(name)]
    assert {(found.st_uid, found.st_gid) for found in on_disk} == {(100005, 200006)}


def test_streams_can_be_opened_again_by_who_has_them(ctr: Ctr, box: str) -> None:
    logs = "access\ndevice\nnumber\nagain\n"
    first = ctr.run("sh", "-c", "nginx-style; exit 7", options=["--rm", *MAPPED])
    assert (first.code, first.text, first.err) == (7, logs, "error\n")
    assert sh(ctr, box, "nginx-style 2>/dev/null") == logs
    user = ctr.exec(box, "sh", "-c", "echo $(id -u) >/dev/stdout", options=["--user", "1000:1001"])
    assert user.ok().text == "1000\n"
    terminal = ctr.terminal(*ctr.exec_args(box, "sh", options=["-t"]))
    terminal.write(b"stat -c owner=%u:%g $(tty); echo by name >/dev/tty; exit 3\n")
    terminal.until(b"owner=0:5")
    terminal.until(b"\nby name")
    assert terminal.finish() == 3


def test_its_root_may_what_a_root_of_a_network_may(ctr: Ctr, box: str) -> None:
    said = sh(ctr, box, "echo hello | nc -l -p 80 & while ! nc 127.0.0.1 80 2>/dev/null; do sleep 0.1; done")
    assert said == "hello\n"


def test_devices_and_a_read_only_root(ctr: Ctr) -> None:
    """crun makes the devices of such a container in a place of their own, which must go with it."""
    container = ctr.detached("sleep", "100000", options=["--read-only", "--device", "/dev/fuse", *MAPPED])
    said = sh(ctr, container, "stat -c %t:%T /dev/fuse; touch /x 2>/dev/null || echo read-only")
    assert said == "a:e5\nread-only\n"
    ctr("task", "kill", "-s", "KILL", container).ok()
    ctr.remove(container)
