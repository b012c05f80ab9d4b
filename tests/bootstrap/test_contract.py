"""The rest of the binary contract: -info, -v, mistakes, the messages, and what the programs may cost."""

import hashlib
import json
import os
import subprocess
import tomllib
from pathlib import Path

import pytest

from shim.bootstrap import address, info, messages, stdin
from shim.bootstrap.group import group_of
from shim.bootstrap.schema import MESSAGES
from shim.errors import InvalidArgument
from shim.pb.containerd import types
from shim.pb.containerd.runtime.bootstrap.v1 import BootstrapParams
from shim.pb.containerd.task import v2 as task
from shim.wire import encode

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "cmd/containerd-shim-kata-py-v2"


def run(*argv: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([PROGRAM, *argv], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def test_both_names_are_the_same_program() -> None:
    other = PROGRAM.with_name("containerd-shim-kata-py")
    assert other.read_bytes() == PROGRAM.read_bytes()
    assert all(os.access(path, os.X_OK) for path in (PROGRAM, other))
    assert PROGRAM.read_bytes().startswith(b"#!/usr/bin/python3 -IS\n")


def test_info_is_a_runtime_info_in_containerds_own_terms() -> None:
    done = run("-info")
    assert done.returncode == 0 and done.stderr == b""
    found = types.RuntimeInfo().parse(done.stdout)
    assert (found.name, found.version.version) == ("io.containerd.kata-py.v2", info.VERSION)
    assert found.features.type_url == "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
    features = json.loads(found.features.value)
    assert "rro" in features["mountOptions"]
    # What containerd takes for user namespaces as Kubernetes means them.
    assert "user" in features["linux"]["namespaces"]
    assert features["linux"]["mountExtensions"]["idmap"]["enabled"] is True


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == info.VERSION
    assert run("-v").stdout.decode().split()[-1] == info.VERSION


def test_it_can_be_called_through_a_link_from_anywhere(tmp_path: Path) -> None:
    link = tmp_path / "containerd-shim-kata-py-v2"
    link.symlink_to(PROGRAM)
    done = subprocess.run([link, "-v"], cwd="/", capture_output=True, check=False)
    assert done.returncode == 0 and done.stdout


@pytest.mark.parametrize("argv", [[], ["start"], ["-x"], ["-namespace", "n", "-id", "../x", "delete"]])
def test_a_mistake_is_one_line_on_stderr_and_status_1(argv: list[str]) -> None:
    done = run(*argv)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (1, b"", 1)
    assert done.stderr.startswith(b"containerd-shim-kata-py")


def test_the_socket_path_is_containerds() -> None:
    digest = hashlib.sha256(b"/run/containerd/containerd.sock/k8s.io/p1").hexdigest()
    found = address.socket_path("/run/containerd/containerd.sock", "k8s.io", "p1")
    assert found == f"/run/containerd/s/{digest}"
    assert address.socket_path("/run/containerd//containerd.sock", "k8s.io", "p1", "/d/") == f"/d/{digest}"
    with pytest.raises(InvalidArgument, match="absolute"):
        address.socket_path("/a", "n", "c", "d")


def test_the_messages_are_those_of_the_full_declarations() -> None:
    response = task.DeleteResponse().parse(messages.delete_response(7, 137, 1_700_000_000_000_000_005))
    assert (response.pid, response.exit_status) == (7, 137)
    assert response.exited_at.timestamp() == pytest.approx(1_700_000_000)
    params = BootstrapParams(
        instance_id="c1",
        namespace="ns",
        log_level=-8,
        containerd_version="2.3.4",
        containerd_ttrpc_address="/t",
        containerd_grpc_address="/g",
        containerd_binary="/b",
        socket_dir="/d",
    )
    found = messages.decode("containerd.runtime.bootstrap.v1.BootstrapParams", bytes(params))
    assert found == {
        "instance_id": "c1",
        "namespace": "ns",
        "log_level": -8,
        "containerd_version": "2.3.4",
        "containerd_ttrpc_address": "/t",
        "containerd_grpc_address": "/g",
        "containerd_binary": "/b",
        "socket_dir": "/d",
    }


@pytest.mark.parametrize(
    ("log_level", "debug"), [(0, False), (4, False), (-4, True), (-8, True), (-3, False)]
)
def test_debug_is_asked_for_by_containerds_level(log_level: int, debug: bool) -> None:
    data = encode(
        MESSAGES,
        "containerd.runtime.bootstrap.v1.BootstrapParams",
        {"instance_id": "c1", "namespace": "ns", "log_level": log_level},
    )
    assert stdin.parse(data, "c1", "ns").debug is debug


def test_torn_input_never_stops_a_start() -> None:
    option = encode(MESSAGES, "runtimeoptions.v1.Options", {"config_path": "/a"})
    data = encode(
        MESSAGES,
        "containerd.runtime.bootstrap.v1.BootstrapParams",
        {
            "instance_id": "c1",
            "namespace": "ns",
            "extensions": [{"value": {"type_url": "runtimeoptions.v1.Options", "value": option}}],
        },
    )
    assert stdin.parse(data, "c1", "ns").config_path == "/a"
    for length in range(len(data)):
        assert stdin.parse(data[:length], "c1", "ns").config_path in ("", "/a")
    assert stdin.parse(data, "other", "ns").config_path == ""


@pytest.mark.parametrize(
    ("spec", "group", "named"),
    [
        ("{}", "c1", False),
        ('  {"annotations": null}\n', "c1", False),
        ('{"annotations": {"io.kubernetes.cri.sandbox-id": "p"}}', "p", False),
        ('{"annotations": {"io.kubernetes.cri.sandbox-id": ""}}', "c1", False),
        ('{"annotations": {"\\u0069o.kubernetes.cri.sandbox-id": "p"}}', "p", False),
        ('{"annotations": {"io.containerd.runc.v2.group": "g"}}', "g", True),
        (
            '{"annotations": {"io.containerd.runc.v2.group": "p", "io.kubernetes.cri.sandbox-id": "p"}}',
            "p",
            False,
        ),
        ('{"process": {"env": ["io.kubernetes.cri.sandbox-id=p"]}}', "c1", False),
    ],
)
def test_the_group_is_read_from_the_annotations_alone(
    tmp_path: Path, spec: str, group: str, named: bool
) -> None:
    tmp_path.joinpath("config.json").write_text(spec)
    found = group_of(str(tmp_path), "c1")
    assert (found.id, found.named) == (group, named)


@pytest.mark.parametrize(
    "spec", ["", "[]", "{", "nul", '{"annotations": [1]}', '{"annotations": 1}', "[" * 200_000]
)
def test_a_spec_that_mentions_a_group_must_make_sense(tmp_path: Path, spec: str) -> None:
    tmp_path.joinpath("config.json").write_text(spec + " " * 3 + "io.kubernetes.cri.sandbox-id")
    with pytest.raises(InvalidArgument, match="not an OCI spec"):
        group_of(str(tmp_path), "c1")


def test_start_imports_nothing_that_costs() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r});"
        "import shim.bootstrap.main, shim.bootstrap.start; print(*sys.modules)"
    )
    done = subprocess.run(["/usr/bin/python3", "-IS", "-c", code], capture_output=True, check=True)
    costly = {
        "typing",
        "json",
        "re",
        "socket",
        "hashlib",
        "contextlib",
        "enum",
        "collections",
        "ctypes",
        "pathlib",
    }
    assert not costly & set(done.stdout.decode().split())
