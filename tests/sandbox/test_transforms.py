"""What the guest gets of the host's spec."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest

from shim import oci
from shim.errors import InvalidArgument
from shim.sandbox import transforms

SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "hostname": "h",
    "process": {"args": ["sh"], "apparmorProfile": "docker-default", "selinuxLabel": "x", "oomScoreAdj": -5},
    "root": {"path": "rootfs", "readonly": True},
    "mounts": [{"destination": "/etc/hosts", "type": "bind", "source": "/h/hosts"}],
    "hooks": {"prestart": [{"path": "/h/hook"}], "startContainer": [{"path": "/c/hook"}], "poststop": []},
    "annotations": {"a": "b", oci.CONTAINER_TYPE: "container"},
    "linux": {
        "namespaces": [
            {"type": "pid", "path": "/proc/7/ns/pid"},
            {"type": "network", "path": "/var/run/netns/x"},
            {"type": "ipc", "path": "/proc/7/ns/ipc"},
            {"type": "mount"},
            {"type": "time"},
            {"type": "cgroup"},
        ],
        "resources": {
            "devices": [{"allow": False}],
            "blockIO": {"weight": 1},
            "network": {"classID": 1},
            "memory": {"limit": 1 << 20},
            "pids": {"limit": 10},
            "cpu": {"shares": 5, "cpus": "0-3", "mems": "0"},
        },
        "mountLabel": "l",
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
        "cgroupsPath": "/a/b",
    },
}
MOUNTS = [{"destination": "/data", "type": "bind", "source": "/g/data", "options": ["bind"]}]


def guest(spec: dict[str, Any] | None = None, devices: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    given = SPEC if spec is None else spec
    kind = oci.POD_CONTAINER
    return transforms.guest_spec(
        given, root="/g/root", mounts=MOUNTS, devices=devices, bundle="/b", kind=kind
    )


def test_the_hosts_spec_stays_as_it_is() -> None:
    before = copy.deepcopy(SPEC)
    guest()
    assert before == SPEC


def test_the_root_moves_and_stays_read_only() -> None:
    assert guest()["root"] == {"path": "/g/root", "readonly": True}


def test_mounts_and_devices_are_those_of_the_guest() -> None:
    disk = {"path": "/dev/disk", "type": "b", "major": 7, "minor": 0}
    assert guest()["mounts"] == MOUNTS
    assert "devices" not in guest()["linux"]
    assert guest(devices=[disk])["linux"]["devices"] == [disk]


def test_no_path_of_a_host_namespace_reaches_the_guest() -> None:
    assert guest()["linux"]["namespaces"] == [{"type": "ipc"}, {"type": "mount"}, {"type": "cgroup"}]
    assert transforms.shares_pidns(SPEC)
    assert not transforms.shares_pidns({"linux": {"namespaces": [{"type": "pid"}]}})


def test_a_namespace_that_is_not_joined_is_the_container_s_own_but_for_the_sandbox_s_first() -> None:
    new = {"linux": {"namespaces": [{"type": "ipc"}, {"type": "uts"}, {"type": "pid"}]}}
    grouped = {**new, "annotations": {oci.GROUP: "g"}}
    assert transforms.own_namespaces(new, "c1") == []
    assert transforms.own_namespaces(grouped, "g") == []
    assert transforms.own_namespaces(grouped, "c1") == ["ipc", "uts"]
    assert transforms.own_namespaces(SPEC, "c1") == []
    assert transforms.own_namespaces({**new, "annotations": {oci.CONTAINER_TYPE: "sandbox"}}, "p") == []


def test_resources_that_speak_of_host_devices_are_dropped() -> None:
    assert guest()["linux"]["resources"] == {
        "memory": {"limit": 1 << 20},
        "pids": {"limit": 10},
        "cpu": {"shares": 5},
    }


def test_hooks_of_the_host_are_left_out_and_named() -> None:
    assert guest()["hooks"] == {"startContainer": [{"path": "/c/hook"}]}
    assert transforms.host_hooks(SPEC) == ["prestart"]
    assert "hooks" not in guest({**SPEC, "hooks": {"prestart": [{"path": "/h"}]}})


def test_labels_of_the_hosts_security_modules_are_cleared_and_seccomp_stays() -> None:
    result = guest()
    assert result["process"] == {"args": ["sh"], "oomScoreAdj": -5}
    assert "mountLabel" not in result["linux"]
    assert result["linux"]["seccomp"] == SPEC["linux"]["seccomp"]
    process = transforms.guest_process(SPEC["process"], terminal=True)
    assert process == {"args": ["sh"], "oomScoreAdj": -5, "terminal": True}


def test_the_agent_is_told_what_kind_of_container_it_is() -> None:
    annotations = guest()["annotations"]
    assert annotations["a"] == "b"
    assert annotations[oci.KATA_CONTAINER_TYPE] == "pod_container"
    assert transforms.container_kind(SPEC) == "pod_container"
    assert transforms.container_kind({}) == "single_container"


@pytest.mark.parametrize(
    "spec",
    [{}, {"linux": None, "mounts": None, "process": None, "hooks": None, "annotations": None}],
    ids=["empty", "null"],
)
def test_a_spec_of_nothing_is_good_enough(spec: dict[str, Any]) -> None:
    assert guest(spec)["root"] == {"path": "/g/root"}
    transforms.host_hooks(spec)


@pytest.mark.parametrize(
    "spec",
    [
        {"linux": []},
        {"linux": {"namespaces": "x"}},
        {"linux": {"resources": 1}},
        {"linux": {"resources": {"cpu": []}}},
        {"hooks": []},
        {"hooks": {"startContainer": {}}},
        {"annotations": "x"},
        {"process": 5},
        {"root": 5},
    ],
    ids=str,
)
def test_a_spec_of_the_wrong_shape_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        guest(spec)


IDS = {
    "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
    "gidMappings": [{"containerID": 0, "hostID": 2000, "size": 10}],
}


def with_users(path: str | None = "", **linux: Any) -> dict[str, Any]:
    users = [{"type": "user", "path": path}] if path is not None else []
    return {"linux": {"namespaces": [{"type": "pid"}, *users], **linux}}


@pytest.mark.parametrize("path", ["", "/host/s/user"])
def test_a_user_namespace_comes_with_its_mappings(path: str) -> None:
    spec = with_users(path, **IDS)
    transforms.check_ids(spec)
    assert guest(spec)["linux"] == {**IDS, "namespaces": [{"type": "user"}]}
    transforms.check_ids(with_users(None))
    transforms.check_ids({})


@pytest.mark.parametrize(
    ("spec", "named"),
    [
        (with_users("/host/s/user"), "/host/s/user"),
        (with_users(""), "without linux.uidMappings"),
        (with_users(None, **IDS), "without a user namespace"),
        (with_users("", uidMappings=IDS["uidMappings"]), "one without the other"),
    ],
)
def test_a_user_namespace_that_cannot_be_made_is_never_left_out(spec: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        transforms.check_ids(spec)


def test_a_user_namespace_that_is_not_joined_is_the_container_s_own() -> None:
    grouped = {**with_users("", **IDS), "annotations": {oci.GROUP: "g"}}
    assert transforms.own_namespaces(grouped, "c1") == ["user"]
    assert transforms.own_namespaces(grouped, "g") == []
    assert transforms.own_namespaces({**grouped, **with_users("/p", **IDS)}, "c1") == []
