from __future__ import annotations

from typing import Any

import pytest

from shim import wire
from shim.errors import InvalidArgument
from shim.guest.schema import MESSAGES
from shim.guest.spec import (
    inherit_process,
    outer_user,
    place_namespaces,
    process_from_proto,
    shared_ids,
    spec_from_proto,
)

SPEC: dict[str, Any] = {
    "Version": "1.1.0",
    "Process": {
        "Terminal": True,
        "ConsoleSize": {"Height": 24, "Width": 80},
        "User": {"UID": 7, "GID": 8, "AdditionalGids": [9], "Username": "u"},
        "Args": ["sh", "-c", "true"],
        "Env": ["A=1"],
        "Cwd": "/tmp",
        "Capabilities": {"Bounding": ["CAP_KILL"], "Ambient": ["CAP_KILL"]},
        "Rlimits": [{"Type": "RLIMIT_NOFILE", "Hard": 10, "Soft": 5}, {"Type": "RLIMIT_CORE"}],
        "NoNewPrivileges": True,
        "ApparmorProfile": "docker-default",
        "OOMScoreAdj": -5,
        "SelinuxLabel": "label",
    },
    "Root": {"Path": "/rootfs", "Readonly": True},
    "Hostname": "h",
    "Mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
    "Hooks": {"Prestart": [{"Path": "/h", "Args": ["h"], "Timeout": 3}], "CreateRuntime": [{"Path": "/i"}]},
    "Annotations": {"Some.Key": "Value", "UID": "x"},
    "Linux": {
        "UIDMappings": [{"HostID": 1, "ContainerID": 2, "Size": 3}],
        "Sysctl": {"Kernel.X": "1"},
        "Resources": {
            "Devices": [{"Access": "rwm"}, {"Allow": True, "Type": "c", "Major": 1, "Minor": 3}],
            "Memory": {"Limit": 1024, "KernelTCP": 5, "DisableOOMKiller": True},
            "CPU": {"Shares": 2, "Quota": -1, "Cpus": "0-1", "RealtimePeriod": 4},
            "Pids": {"Limit": 10},
            "BlockIO": {"Weight": 1, "ThrottleReadBpsDevice": [{"Major": 8, "Minor": 1, "Rate": 9}]},
            "HugepageLimits": [{"Pagesize": "2MB", "Limit": 3}],
            "Network": {"ClassID": 1},
        },
        "CgroupsPath": "/a/b",
        "Namespaces": [{"Type": "pid"}, {"Type": "network", "Path": "/x"}],
        "Devices": [{"Path": "/dev/x", "Type": "c", "Major": 5, "Minor": 6, "FileMode": 438, "UID": 1}],
        "Seccomp": {
            "DefaultAction": "SCMP_ACT_ERRNO",
            "Architectures": ["SCMP_ARCH_X86_64"],
            "Syscalls": [
                {"Names": ["clone"], "Action": "A", "errnoret": 1, "Args": [{"ValueTwo": 3, "Op": "O"}]}
            ],
        },
        "MaskedPaths": ["/proc/kcore"],
        "MountLabel": "m",
    },
}


def test_every_field_gets_its_name_in_the_runtime_spec() -> None:
    # Through the wire, so that this holds for what really arrives.
    received = wire.decode(MESSAGES, "grpc.Spec", wire.encode(MESSAGES, "grpc.Spec", SPEC))
    assert spec_from_proto(received) == {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": True,
            "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 7, "gid": 8, "additionalGids": [9], "username": "u"},
            "args": ["sh", "-c", "true"],
            "env": ["A=1"],
            "cwd": "/tmp",
            "capabilities": {"bounding": ["CAP_KILL"], "ambient": ["CAP_KILL"]},
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": 10, "soft": 5},
                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
            ],
            "noNewPrivileges": True,
            "oomScoreAdj": -5,
        },
        "root": {"path": "/rootfs", "readonly": True},
        "hostname": "h",
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
        "hooks": {
            "prestart": [{"path": "/h", "args": ["h"], "timeout": 3}],
            "createRuntime": [{"path": "/i"}],
        },
        "annotations": {"Some.Key": "Value", "UID": "x"},
        "linux": {
            "uidMappings": [{"hostID": 1, "containerID": 2, "size": 3}],
            "sysctl": {"Kernel.X": "1"},
            "resources": {
                "devices": [
                    {"allow": False, "access": "rwm"},
                    {"allow": True, "type": "c", "major": 1, "minor": 3},
                ],
                "memory": {"limit": 1024, "kernelTCP": 5, "disableOOMKiller": True},
                "cpu": {"shares": 2, "quota": -1, "period": 100000, "cpus": "0-1", "realtimePeriod": 4},
                "pids": {"limit": 10},
                "blockIO": {"weight": 1, "throttleReadBpsDevice": [{"major": 8, "minor": 1, "rate": 9}]},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 3}],
                "network": {"classID": 1},
            },
            "cgroupsPath": "/a/b",
            "namespaces": [{"type": "pid"}, {"type": "network", "path": "/x"}],
            "devices": [{"path": "/dev/x", "type": "c", "major": 5, "minor": 6, "fileMode": 438, "uid": 1}],
            "seccomp": {
                "defaultAction": "SCMP_ACT_ERRNO",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [
                    {
                        "names": ["clone"],
                        "action": "A",
                        "errnoRet": 1,
                        "args": [{"valueTwo": 3, "op": "O", "index": 0, "value": 0}],
                    }
                ],
            },
            "maskedPaths": ["/proc/kcore"],
        },
    }


def test_an_empty_spec_gets_what_crun_cannot_do_without() -> None:
    assert spec_from_proto({}) == {
        "ociVersion": "1.0.2",
        "process": {"args": [], "cwd": "/", "terminal": False, "user": {"uid": 0, "gid": 0}},
        "root": {},
        "mounts": [],
        "linux": {},
    }


def test_the_message_is_not_changed() -> None:
    message = {"User": {"UID": 1}, "Args": ["a"]}
    process_from_proto(message)["user"]["gid"] = 5
    assert message == {"User": {"UID": 1}, "Args": ["a"]}


@pytest.mark.parametrize(
    ("wanted", "paths", "kept"),
    [
        (["pid", "network", "time", "mount"], {}, [{"type": "pid"}, {"type": "mount"}]),
        ([], {}, [{"type": "pid"}]),
        ([], {"pid": "/p"}, [{"type": "pid", "path": "/p"}]),
        (["ipc", "pid"], {"ipc": "/i", "uts": "/u"}, [{"type": "ipc", "path": "/i"}, {"type": "pid"}]),
        ([""], {}, [{"type": "pid"}]),
    ],
)
def test_namespaces_are_those_of_the_guest(
    wanted: list[str], paths: dict[str, str], kept: list[dict[str, str]]
) -> None:
    spec: dict[str, Any] = {"linux": {"namespaces": [{"type": kind, "path": "/host"} for kind in wanted]}}
    place_namespaces(spec, paths)
    assert spec["linux"]["namespaces"] == [*kept, {"type": "cgroup"}]


def test_an_exec_inherits_capabilities_only_when_it_names_none() -> None:
    container = {"capabilities": {"bounding": ["CAP_KILL"]}}
    bare: dict[str, Any] = {}
    inherit_process(bare, container)
    assert bare == container
    own: dict[str, Any] = {"capabilities": {"bounding": ["CAP_CHOWN"]}}
    inherit_process(own, container)
    assert own == {"capabilities": {"bounding": ["CAP_CHOWN"]}}


def test_runtime_rs_s_names_of_capabilities_and_namespaces_are_the_spec_s() -> None:
    process = process_from_proto({"Capabilities": {"Bounding": ["KILL", "CAP_CHOWN"], "Ambient": []}})
    assert process["capabilities"] == {"bounding": ["CAP_KILL", "CAP_CHOWN"], "ambient": []}
    spec = spec_from_proto({"Linux": {"Namespaces": [{"Type": kind} for kind in ("mnt", "net", "uts")]}})
    place_namespaces(spec, {"uts": "/u"})
    own = [{"type": "pid"}, {"type": "cgroup"}]
    assert spec["linux"]["namespaces"] == [{"type": "mount"}, {"type": "uts", "path": "/u"}, *own]


def with_users(*kinds: str) -> dict[str, Any]:
    ids = [{"HostID": 1000, "Size": 10}]
    namespaces = [{"Type": kind} for kind in kinds]
    return spec_from_proto({"Linux": {"UIDMappings": ids, "GIDMappings": ids, "Namespaces": namespaces}})


def test_ids_are_shared_with_the_sandbox_but_by_who_has_its_own() -> None:
    assert shared_ids(with_users("pid", "user"), ["ipc"]) == ("0:1000:10", "0:1000:10")
    assert shared_ids(with_users("pid", "user"), ["ipc", "user"]) is None
    assert shared_ids(with_users("pid"), []) is None


@pytest.mark.parametrize(("kinds", "options"), [(["user"], ["nosuid", "ro"]), ([], ["nosuid", "rw"])])
def test_a_user_namespace_has_the_guest_s_sysfs_to_read(kinds: list[str], options: list[str]) -> None:
    spec = with_users(*kinds)
    spec["mounts"] = [{"destination": "/sys", "type": "sysfs", "options": ["nosuid", "rw"]}]
    place_namespaces(spec, {"user": "/u"})
    assert spec["mounts"][0]["options"] == options


def test_a_user_is_mapped_and_one_without_a_mapping_named() -> None:
    linux = with_users("user")["linux"]

    def process(**user: Any) -> dict[str, Any]:
        return process_from_proto({"User": user})

    assert outer_user(process(UID=9, GID=3, AdditionalGids=[4]), linux) == (1009, 1003)
    assert outer_user(process(UID=9), {}) == (0, 0)
    for user, named in (
        ({"UID": 10}, "uid 10"),
        ({"GID": 11}, "gid 11"),
        ({"AdditionalGids": [12]}, "gid 12"),
    ):
        with pytest.raises(InvalidArgument, match=f"{named} is not among"):
            outer_user(process(**user), linux)
