"""Several containers in one VM without CRI: by the annotation that containerd's own shim knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from integration.ctr import Ctr
from integration.until import until


@pytest.mark.vm
def test_a_group_is_one_vm_whose_containers_keep_to_themselves(ctr: Ctr) -> None:
    first, second, third = ctr.new_id(), ctr.new_id(), ctr.new_id()
    options = ["--annotation", f"io.containerd.runc.v2.group={first}", "--null-io"]
    for container in (first, second):
        ctr(*ctr.run_args(container, "sleep", "100000", options=["-d", *options])).ok()
    pids = ctr.tasks()
    assert pids[first] == pids[second]
    names = "for kind in ipc uts pid net; do readlink /proc/self/ns/$kind; done; cat /proc/sys/kernel/random/boot_id"
    one, two = (ctr.exec(container, "sh", "-c", names).ok().text.split() for container in (first, second))
    assert [a == b for a, b in zip(one, two, strict=True)] == [False, False, False, True, True]
    ctr.remove(first)
    assert ctr.exec(second, "echo", "still here").ok().text == "still here\n"
    ending = ctr.spawn("task", "rm", "-f", second)
    until("its VM ends", lambda: not sockets_of(ctr, first))
    done = ctr.run("sh", "-c", "exit 7", options=options, container=third)
    assert done.code == 7, f"a new shim, not the one that ends: {done.err}"
    ending.communicate()


def sockets_of(ctr: Ctr, group: str) -> list[Path]:
    return [path for path in ctr.daemon.shim_sockets(group) if path.exists()]
