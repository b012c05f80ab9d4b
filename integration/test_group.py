"""Several containers in one VM without CRI: by the annotation that containerd's own shim knows."""

from __future__ import annotations

import pytest

from integration.ctr import Ctr


@pytest.mark.vm
def test_a_group_is_one_vm_whose_containers_keep_to_themselves(ctr: Ctr) -> None:
    first, second = ctr.new_id(), ctr.new_id()
    for container in (first, second):
        options = ["-d", "--annotation", f"io.containerd.runc.v2.group={first}", "--null-io"]
        ctr(*ctr.run_args(container, "sleep", "100000", options=options)).ok()
    pids = ctr.tasks()
    assert pids[first] == pids[second]
    names = "for kind in ipc uts pid net; do readlink /proc/self/ns/$kind; done; cat /proc/sys/kernel/random/boot_id"
    one, two = (ctr.exec(container, "sh", "-c", names).ok().text.split() for container in (first, second))
    assert [a == b for a, b in zip(one, two, strict=True)] == [False, False, False, True, True]
    ctr.remove(first)
    assert ctr.exec(second, "echo", "still here").ok().text == "still here\n"
    ctr.remove(second)
