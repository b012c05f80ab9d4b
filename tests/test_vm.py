from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shim import vm
from shim.config.annotations import Host
from shim.config.model import Config
from shim.vm_size import Size

MIB = 1 << 20


def test_the_agent_is_told_its_ports() -> None:
    config = Config(passfd_listener_port=2000, kernel_params=("quiet", "a=1"))
    spec = vm.spec(config, "c1", Path("/run/x"))
    assert spec.kernel_params == ("agent.passfd_listener_port=2000", "quiet", "a=1")


def test_the_debug_console_is_there_only_when_asked_for() -> None:
    spec = vm.spec(Config(debug_console=True, debug_console_vport=99), "c1", Path("/run/x"))
    assert spec.kernel_params[1:] == ("agent.debug_console", "agent.debug_console_vport=99")


@pytest.mark.parametrize(
    ("host", "settings", "most"),
    [
        (Host(4096, 4), {}, Size(4096, 4)),
        (Host(2 << 20, 256), {}, Size(512 << 10, 16)),
        (Host(2 << 20, 256), {"max_memory_mib": 1 << 20, "max_vcpus": 240}, Size(1 << 20, 240)),
        (Host(4096, 4), {"max_memory_mib": 512, "max_vcpus": 2}, Size(512, 2)),
        (Host(4096, 4), {"max_memory_mib": 512, "max_vcpus": 2, "memory_mib": 600, "vcpus": 3}, Size(600, 3)),
        (Host(4096, 2), {"memory_mib": 8192, "vcpus": 3}, Size(8192, 3)),
    ],
)
def test_a_vm_may_become_what_is_set_or_the_host_has(
    monkeypatch: pytest.MonkeyPatch, host: Host, settings: dict[str, Any], most: Size
) -> None:
    monkeypatch.setattr(vm, "host", lambda: host)
    assert vm.most(Config(**settings)) == most
    spec = vm.spec(Config(**settings), "c1", Path("/run/x"))
    assert (spec.max_memory_mib, spec.max_vcpus) == (most.memory_mib, most.vcpus)


def test_a_sandbox_has_its_first_container_s_size_from_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vm, "host", lambda: Host(4096, 2))
    resources = {"memory": {"limit": 300 * MIB}, "cpu": {"quota": 150_000, "period": 100_000}}
    alone = {"linux": {"resources": resources}}
    assert size({}) == size({"linux": {}}) == Size(256, 1)
    assert size(alone) == Size(768, 2)
    # What CRI says of the pod has these limits in it already.
    pod = {"annotations": {"io.kubernetes.cri.sandbox-memory": str(700 * MIB)}}
    assert size(pod) == size({**pod, **alone}) == Size(1024, 1)
    resources["memory"]["limit"] = 9000 * MIB
    resources["cpu"]["quota"] = 900_000
    assert size(alone) == Size(4096, 2)  # more there is not


def size(spec: dict[str, Any]) -> Size:
    config = vm.sized(Config(), spec)
    return Size(config.memory_mib, config.vcpus)
