"""Settings by containerd's configuration of the runtime and by a pod's annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from integration.cri.crictl import Crictl

pytestmark = pytest.mark.vm

HYPERVISOR = "io.katacontainers.config.hypervisor."


@pytest.fixture
def own(crictl: Crictl) -> Iterator[str]:
    """The runtime with settings of its own: less memory, and CPUs as a pod wants them."""
    path = crictl.daemon.own_settings
    path.parent.joinpath("config.d").mkdir(parents=True, exist_ok=True)
    path.write_text(crictl.daemon.settings.read_text())
    path.parent.joinpath("config.d/own.toml").write_text(
        'memory_mib = 200\ntemplate = "off"\nenable_annotations = ["default_vcpus"]\n'
    )
    yield "kata-py-own"


def test_a_runtime_has_settings_and_a_pod_changes_what_it_may(crictl: Crictl, own: str) -> None:
    pod = crictl.run_pod(own, annotations={f"{HYPERVISOR}default_vcpus": "2"})
    container = pod.run("sleep", "1000")
    assert crictl.sh(container, "nproc") == "2\n"
    memory = crictl.sh(container, "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo")
    assert 128 << 10 < int(memory) < 200 << 10
    shown = json.loads(crictl.daemon.tool("config", "show", "--sandbox", pod.id, "--json"))
    assert shown["vcpus"] == {"value": 2, "origin": f"annotation {HYPERVISOR}default_vcpus"}
    assert shown["memory_mib"] == {"value": 200, "origin": str(crictl.daemon.root / "own/config.d/own.toml")}

    done = crictl(
        "runp", "--runtime", own, str(crictl.pod_config(annotations={f"{HYPERVISOR}default_memory": "512"}))
    )
    assert done.code != 0
    assert (
        f"annotation {HYPERVISOR}default_memory is not allowed: enable_annotations has default_vcpus"
        in done.err
    )
