"""A pod's configuration becomes the spec that shapes its sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from betterproto.lib.google.protobuf import Any as AnyMessage

from shim import oci
from shim.controller import pod
from shim.errors import InvalidArgument
from shim.pb.containerd.runtime.sandbox.v1 import CreateSandboxRequest
from shim.pb.runtime.v1 import (
    LinuxContainerResources,
    LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext,
    NamespaceMode,
    NamespaceOption,
    PodSandboxConfig,
)


def spec(request: CreateSandboxRequest, files: dict[str, Path] | None = None) -> dict[str, Any]:
    return pod.spec(request, pod.config_of(request.options), files or {})


def request(config: PodSandboxConfig | None = None, **fields: Any) -> CreateSandboxRequest:
    options = AnyMessage("runtime.v1.PodSandboxConfig", bytes(config or PodSandboxConfig()))
    return CreateSandboxRequest(**{"sandbox_id": "p1", "options": options, **fields})


def test_the_spec_has_hostname_network_and_annotations() -> None:
    config = PodSandboxConfig(hostname="web-0", annotations={"a": "pod", "b": "pod"})
    made = spec(request(config, netns_path="/run/netns/x", annotations={"b": "runtime"}))
    assert made["hostname"] == "web-0"
    assert oci.namespace_path(made, "network") == "/run/netns/x"
    assert made["annotations"] == {
        "a": "pod",
        "b": "runtime",
        oci.CONTAINER_TYPE: "sandbox",
        oci.SANDBOX_ID: "p1",
    }


def test_a_pod_of_the_host_s_network_has_no_network_namespace() -> None:
    host = LinuxSandboxSecurityContext(namespace_options=NamespaceOption(network=NamespaceMode.NODE))
    config = PodSandboxConfig(linux=LinuxPodSandboxConfig(security_context=host))
    assert oci.namespace_path(spec(request(config)), "network") is None


def test_resources_become_the_annotations_that_a_pause_container_has() -> None:
    resources = LinuxContainerResources(
        cpu_period=100000, cpu_quota=150000, cpu_shares=512, memory_limit_in_bytes=1 << 30
    )
    config = PodSandboxConfig(linux=LinuxPodSandboxConfig(resources=resources))
    found = spec(request(config))["annotations"]
    assert {name.rpartition("sandbox-")[2]: value for name, value in found.items() if "-cpu-" in name} == {
        "cpu-period": "100000",
        "cpu-quota": "150000",
        "cpu-shares": "512",
    }
    assert found["io.kubernetes.cri.sandbox-memory"] == str(1 << 30)


def test_resources_that_are_not_set_are_not_annotated() -> None:
    assert set(spec(request())["annotations"]) == {oci.CONTAINER_TYPE, oci.SANDBOX_ID}


@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("/kubepods/burstable/pod1", "/kubepods/burstable/pod1/p1"),
        ("/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice:cri-containerd:p1"),
        ("", ""),
    ],
)
def test_the_cgroup_is_below_the_pod_s(parent: str, path: str) -> None:
    config = PodSandboxConfig(linux=LinuxPodSandboxConfig(cgroup_parent=parent))
    assert spec(request(config))["linux"]["cgroupsPath"] == path


def test_files_become_mounts() -> None:
    mount, shm = spec(request(), {"/etc/hosts": Path("/run/x/hosts")})["mounts"]
    assert (mount["destination"], mount["source"]) == ("/etc/hosts", "/run/x/hosts")
    assert oci.is_bind(mount)
    assert shm["destination"] == "/dev/shm"


@pytest.mark.parametrize(
    ("mode", "path"), [(NamespaceMode.POD, ""), (NamespaceMode.CONTAINER, None), (NamespaceMode.NODE, None)]
)
def test_a_pid_namespace_is_the_pod_s_if_it_says_so(mode: NamespaceMode, path: str | None) -> None:
    context = LinuxSandboxSecurityContext(namespace_options=NamespaceOption(pid=mode))
    config = PodSandboxConfig(linux=LinuxPodSandboxConfig(security_context=context))
    assert oci.namespace_path(spec(request(config)), "pid") == path


def test_without_options_a_pod_has_nothing_particular() -> None:
    assert spec(CreateSandboxRequest(sandbox_id="p1"))["hostname"] == ""


def test_a_type_url_may_have_a_prefix() -> None:
    options = AnyMessage("type.googleapis.com/runtime.v1.PodSandboxConfig", bytes(PodSandboxConfig("h")))
    assert spec(request(options=options))["hostname"] == "h"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (AnyMessage("example.Other", b""), "example.Other"),
        (AnyMessage("runtime.v1.PodSandboxConfig", b"\xff\xff\xff"), "PodSandboxConfig"),
    ],
)
def test_foreign_or_broken_options_are_refused(options: AnyMessage, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        spec(request(options=options))


def test_sysctls_are_the_pod_s() -> None:
    config = PodSandboxConfig(linux=LinuxPodSandboxConfig(sysctls={"net.core.somaxconn": "1"}))
    assert spec(request(config))["linux"]["sysctl"] == {"net.core.somaxconn": "1"}
