import pytest

from shim.config.annotations import Host, annotated
from shim.config.model import Config
from shim.errors import InvalidArgument, PermissionDenied, ShimError

HYPERVISOR = "io.katacontainers.config.hypervisor."
HOST = Host(memory_mib=4096, cpus=4)


def test_the_size_of_the_vm_may_be_annotated_and_its_origin_is_kept() -> None:
    found = annotated(
        Config(), {f"{HYPERVISOR}default_memory": "512", f"{HYPERVISOR}default_vcpus": "2"}, HOST
    )
    assert found == Config(memory_mib=512, vcpus=2)
    assert found.origins == {
        "memory_mib": f"annotation {HYPERVISOR}default_memory",
        "vcpus": f"annotation {HYPERVISOR}default_vcpus",
    }


def test_others_annotations_are_none_of_our_business() -> None:
    given = {"io.kubernetes.cri.sandbox-id": "p1", "io.katacontainers.pkg.oci.bundle_path": "/b", "x": 5}
    assert annotated(Config(), given, HOST) == Config()


def test_how_many_cpus_there_may_be_is_kata_s_default_max_vcpus() -> None:
    config = Config(enable_annotations=("default_max_vcpus",))
    assert annotated(config, {f"{HYPERVISOR}default_max_vcpus": "3"}, HOST).max_vcpus == 3
    with pytest.raises(InvalidArgument, match="= 5: the host has 4 CPUs"):
        annotated(config, {f"{HYPERVISOR}default_max_vcpus": "5"}, HOST)


def test_kernel_params_come_behind_the_settings_own_where_they_are_enabled() -> None:
    config = Config(kernel_params=("a=1",), enable_annotations=("kernel_params",))
    found = annotated(config, {f"{HYPERVISOR}kernel_params": " b=2  loglevel=7 "}, HOST)
    assert found.kernel_params == ("a=1", "b=2", "loglevel=7")


@pytest.mark.parametrize(
    ("name", "value", "kind", "said"),
    [
        ("default_memory", "64", InvalidArgument, "= '64': want a whole number from 128 to 1048576"),
        ("default_memory", "512Mi", InvalidArgument, "= '512Mi': want a whole number"),
        ("default_memory", "", InvalidArgument, "want a whole number"),
        ("default_memory", "9" * 5000, InvalidArgument, "want a whole number"),
        ("default_memory", 512.5, InvalidArgument, "want a whole number"),
        ("default_memory", None, InvalidArgument, "want a whole number"),
        ("default_memory", "8192", InvalidArgument, "= 8192: the host has 4096 MiB"),
        ("default_vcpus", "5", InvalidArgument, "= 5: the host has 4 CPUs"),
        ("default_max_vcpus", "2", PermissionDenied, "is not allowed"),
        ("default_vcpus", "-1", InvalidArgument, "want a whole number from 1 to 240"),
        ("kernel_params", "debug", PermissionDenied, "enable_annotations has default_memory, default_vcpus"),
        ("kernel", "/my/vmlinux", PermissionDenied, "is not allowed"),
        ("memory_mib", "512", PermissionDenied, "is not allowed"),
        ("../runtime.sandbox_cgroup_only", "true", PermissionDenied, "is not allowed"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(
    name: str, value: object, kind: type[ShimError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        annotated(Config(), {HYPERVISOR + name: value}, HOST)
    assert str(caught.value).startswith(f"annotation {HYPERVISOR}{name} ") and said in str(caught.value)


def test_no_annotation_is_allowed_where_the_list_is_empty() -> None:
    with pytest.raises(PermissionDenied, match="enable_annotations is empty"):
        annotated(Config(enable_annotations=()), {f"{HYPERVISOR}default_memory": "512"}, HOST)


@pytest.mark.parametrize(
    "word",
    [
        "agent.passfd_listener_port=0",
        "agent.debug_console",
        "panic=0",
        "init=/x",
        "rdinit=/x",
        "--",
        '"init=/x"',
    ],
)
def test_what_shim_and_agent_agree_on_is_not_a_pods_to_set(word: str) -> None:
    config = Config(enable_annotations=("kernel_params",))
    with pytest.raises(InvalidArgument, match=f"'{word}' is not a pod's to set"):
        annotated(config, {f"{HYPERVISOR}kernel_params": f"quiet {word}"}, HOST)
