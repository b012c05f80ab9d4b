"""`start`, as containerd runs it, with a fake daemon."""

import os
import resource
import socket
import stat
import time
from pathlib import Path

import pytest

from shim.bootstrap.schema import MESSAGES
from shim.record import Record
from shim.wire import encode
from tests.bootstrap.installed import Shim, eventually

CRI = "io.kubernetes.cri.sandbox-id"
GROUP = "io.containerd.runc.v2.group"


def connects(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


def test_start_prints_the_address_alone_and_the_socket_listens_already(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    path = shim.started(bundle)
    assert connects(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert os.stat(shim.sockets).st_mode & 0o777 == 0o711
    address = bundle / "address"
    assert address.read_text() == f"unix://{path}" and address.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(bundle)) == ["address", "config.json", "rootfs"]


def test_the_daemon_is_detached_and_gets_the_socket_and_nothing_else(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    reader, leaked = os.pipe()
    path = shim.started(bundle, "-debug", pass_fds=[leaked], env={"TTRPC_ADDRESS": "/t.ttrpc", "KEPT": "1"})
    os.close(leaked)
    assert os.read(reader, 1) == b""  # nobody else holds it
    os.close(reader)
    state = shim.state("c1")
    fds = {int(number): name for number, name in state["fds"].items()}
    assert [fds[n] for n in (0, 1, 2)] == ["/dev/null"] * 3
    assert fds.pop(3).startswith("socket:") and state["listening"] == path
    assert all(name.startswith("/proc/") for number, name in fds.items() if number > 2)
    assert state["sid"] == state["pid"] and state["cwd"] == str(bundle)
    assert state["flags"] == [1, 1] and str(bundle) not in state["path"] and "" not in state["path"]
    assert state["argv"] == [
        *("-namespace", "ns", "-address", shim.grpc),
        *("-publish-binary", "/bin/containerd", "-id", "c1", "-debug"),
    ]
    assert state["env"]["TTRPC_ADDRESS"] == "/t.ttrpc" and state["env"]["KEPT"] == "1"
    assert state["oom"] == min(1000, int(Path("/proc/self/oom_score_adj").read_text()) + 1)


def test_the_daemon_may_open_as_many_files_as_the_host_allows(shim: Shim) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))  # as systemd has it
    try:
        shim.started(shim.bundle("c1"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert shim.state("c1")["files"] == [limits[1], limits[1]]


def test_the_environment_is_scrubbed_of_python_and_of_the_service_manager(shim: Shim) -> None:
    evil = shim.tmp / "evil"
    evil.mkdir()
    for name in ("shim", "sitecustomize", "os"):
        evil.joinpath(f"{name}.py").write_text("raise SystemExit('evil')")
    bundle = shim.bundle("c1")
    bundle.joinpath("shim.py").write_text("raise SystemExit('evil')")
    shim.started(bundle, env={"PYTHONPATH": str(evil), "PYTHONVERBOSE": "1", "NOTIFY_SOCKET": "/n"})
    env = shim.state("c1")["env"]
    assert "NOTIFY_SOCKET" not in env and not [name for name in env if name.startswith("PYTHON")]


def test_what_goes_wrong_in_the_daemons_first_moment_is_in_the_bundles_log(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    bundle.joinpath("crash").touch()
    shim.started(bundle)
    assert b"crashed at import" in eventually(lambda: os.read(log, 4096))
    os.close(log)


def test_a_second_container_joins_the_live_shim_of_its_pod(shim: Shim) -> None:
    path = shim.started(shim.bundle("p1", {CRI: "p1"}))
    bundle = shim.bundle("c1", {CRI: "p1"})
    assert shim.started(bundle) == path
    assert bundle.joinpath("address").read_text() == f"unix://{path}"
    assert len(shim.daemons()) == 1 and shim.state("p1")["argv"][7] == "p1"


@pytest.mark.parametrize(
    ("annotations", "group"),
    [({}, "c1"), ({CRI: "p1"}, "p1"), ({GROUP: "g1"}, "g1"), ({GROUP: "g1", CRI: "p1"}, "g1")],
)
def test_the_group_is_the_annotation_or_the_containers_own_id(
    shim: Shim, annotations: dict[str, str], group: str
) -> None:
    shim.started(shim.bundle("c1", annotations))
    assert "-id" in shim.state(group)["argv"]


def test_a_bundle_without_a_spec_is_a_sandbox_of_its_own(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    bundle.joinpath("config.json").unlink()
    shim.started(bundle)
    assert shim.state("c1")


@pytest.mark.parametrize(
    ("annotations", "said"),
    [({GROUP: "../../etc"}, "sandbox id '../../etc'"), ({CRI: 5}, "not a string"), ([1], "not an OCI spec")],
)
def test_a_hostile_annotation_is_refused_in_one_line(shim: Shim, annotations: object, said: str) -> None:
    bundle = shim.bundle("c1")
    text = f'{{"annotations": {annotations!r}, "about": "{CRI}"}}'.replace("'", '"')
    bundle.joinpath("config.json").write_text(text)
    status, output = shim.start(bundle)
    assert status == 1 and said in output.replace('"', "'") and output.count("\n") == 1
    assert not shim.run.exists() and not shim.daemons()


def test_two_starts_at_once_make_one_shim(shim: Shim) -> None:
    bundles = [shim.bundle(f"c{n}", {CRI: "p1"}) for n in range(6)]
    children = [shim.popen(bundle) for bundle in bundles]
    outputs = {child.communicate(timeout=30)[0] for child in children}
    assert [child.returncode for child in children] == [0] * 6
    assert len(outputs) == 1 and len(shim.daemons()) == 1
    assert {bundle.joinpath("address").read_bytes() for bundle in bundles} == outputs


def test_a_stale_socket_is_replaced(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    path = shim.started(bundle)
    first = shim.state("c1")["pid"]
    shim.kill()
    assert os.path.exists(path) and not connects(path)
    assert shim.started(bundle) == path and connects(path)
    assert eventually(lambda: shim.state("c1")["pid"] != first)


def test_a_stale_socket_without_any_runtime_directory_is_replaced(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    path = shim.started(bundle)
    shim.state("c1")  # before that it may have no name yet by which it is found
    shim.kill()
    assert shim.delete(bundle).returncode == 0
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
    assert shim.started(bundle) == path and connects(path)


def test_a_daemon_that_died_before_it_left_a_record_is_forgotten(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    bundle.joinpath("crash").touch()
    shim.started(bundle)
    eventually(lambda: not shim.daemons())
    bundle.joinpath("crash").unlink()
    shim.started(bundle)
    assert shim.state("c1")


def test_start_waits_for_the_end_of_the_previous_shim_of_the_same_name(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    path = shim.started(bundle)
    first = shim.state("c1")["pid"]
    os.unlink(path)  # as a shim does that shuts down
    child = shim.popen(bundle)
    time.sleep(0.2)
    assert child.poll() is None
    os.kill(first, 15)
    assert child.communicate(timeout=30)[0] == f"unix://{path}".encode()
    assert eventually(lambda: shim.state("c1")["pid"] != first)


def test_what_a_crashed_shim_left_is_removed_before_the_next_one(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    shim.started(bundle)
    shim.state("c1")
    record = Record.load(f"{shim.run}/ns/c1")
    leftover = shim.tmp / "leftover"
    leftover.mkdir()
    record.add_cgroups(str(leftover))
    shim.kill()
    shim.started(bundle)
    assert not leftover.exists()


def test_a_shim_of_another_runtime_in_the_same_group_is_not_joined(shim: Shim) -> None:
    bundle = shim.bundle("c1", {GROUP: "g1"})
    path = shim.started(bundle)
    shim.state("g1")  # before that it may have no name yet by which it is found
    shim.kill()
    assert shim.delete(bundle).returncode == 0
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(path)
        other.listen()
        status, output = shim.start(bundle)
    assert status == 1 and "another runtime's" in output
    assert not shim.run.exists()


def test_another_containerds_sandbox_of_the_same_name_is_not_touched(shim: Shim) -> None:
    path = shim.started(shim.bundle("c1"))
    shim.state("c1")
    other = shim.tmp / "other/c1"
    other.mkdir(parents=True)
    status, output = shim.start(other, grpc="/other.sock")
    assert status == 1 and "in use by the shim at unix://" in output
    assert connects(path) and len(shim.daemons()) == 1


def test_a_program_that_cannot_run_leaves_nothing_behind(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    argv = shim.argv("start", "c1")
    shim.program.chmod(0o644)
    import subprocess

    done = subprocess.run(
        ["/usr/bin/python3", "-IS", *argv],
        cwd=bundle,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == b"" and done.stderr.count(b"\n") == 1
    assert not shim.run.exists() and os.listdir(shim.sockets) == []


# -- stdin ---------------------------------------------------------------------------------------------------

PARAMS = "containerd.runtime.bootstrap.v1.BootstrapParams"


def options(path: str, type_url: str = "runtimeoptions.v1.Options") -> dict[str, object]:
    return {
        "type_url": type_url,
        "value": encode(MESSAGES, "runtimeoptions.v1.Options", {"config_path": path}),
    }


def params(**more: object) -> bytes:
    return encode(MESSAGES, PARAMS, {"instance_id": "c1", "namespace": "ns", **more})


def test_bootstrap_params_choose_the_socket_directory_and_the_log_level(shim: Shim) -> None:
    path = shim.started(
        shim.bundle("c1"),
        stdin=params(
            socket_dir=str(shim.tmp / "d"),
            log_level=-4,
            containerd_ttrpc_address="/c.ttrpc",
            extensions=[
                {"value": {"type_url": "containerd.runc.v1.Options", "value": b"\x12\x01x"}},
                {"value": options("/etc/k.toml")},
            ],
        ),
    )
    assert os.path.dirname(path) == str(shim.tmp / "d") and connects(path)
    state = shim.state("c1")
    assert state["argv"][-1] == "-debug"
    assert state["env"]["TTRPC_ADDRESS"] == os.environ.get("TTRPC_ADDRESS", "/c.ttrpc")
    assert state["env"]["KATA_PY_CONFIG"] == "/etc/k.toml"


def test_a_socket_directory_that_makes_the_path_too_long_is_refused(shim: Shim) -> None:
    status, output = shim.start(shim.bundle("c1"), stdin=params(socket_dir="/" + "x" * 60))
    assert status == 1 and "longer than 106 bytes" in output


def test_the_options_config_path_goes_to_the_daemon(shim: Shim) -> None:
    data = encode(
        MESSAGES,
        "google.protobuf.Any",
        options("/etc/k.toml", "types.containerd.io/runtimeoptions.v1.Options"),
    )
    shim.started(shim.bundle("c1"), stdin=data, env={"KATA_PY_CONFIG": "/less/specific"})
    assert shim.state("c1")["env"]["KATA_PY_CONFIG"] == "/etc/k.toml"


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"\xff", "config_body: 'utf-8'"), (b"a\0b", "want text of at most"), (b"x" * 70000, "at most 65536")],
)
def test_the_options_config_body_goes_to_the_daemon_if_it_is_text(shim: Shim, body: bytes, said: str) -> None:
    def given(text: bytes) -> bytes:
        value = encode(MESSAGES, "runtimeoptions.v1.Options", {"config_body": text})
        return encode(
            MESSAGES, "google.protobuf.Any", {"type_url": "runtimeoptions.v1.Options", "value": value}
        )

    status, output = shim.start(shim.bundle("c2"), stdin=given(body))
    assert status == 1 and said in output
    text = f"memory_mib = 512 # {'ü' * 100}\n"  # longer than one byte of length can say
    shim.started(shim.bundle("c1"), stdin=given(text.encode()))
    assert shim.state("c1")["env"]["KATA_PY_CONFIG_BODY"] == text


def test_a_relative_config_path_is_refused(shim: Shim) -> None:
    status, output = shim.start(
        shim.bundle("c1"), stdin=encode(MESSAGES, "google.protobuf.Any", options("k.toml"))
    )
    assert status == 1 and "config_path 'k.toml': want an absolute path" in output


@pytest.mark.parametrize(
    "data",
    [
        b"\n\x1acontainerd.runc.v1.Options\x12\x03\x08\x01\x10",
        encode(MESSAGES, "google.protobuf.Any", {"type_url": "other", "value": b"\xff"}),
        b"{}",
        b"\xff" * 100,
        b"\n\xff\xff\xff\xff\x0f",
        params(log_level=-4)[:-1],
    ],
)
def test_options_of_others_and_garbage_are_ignored_but_garbage_is_logged(shim: Shim, data: bytes) -> None:
    shim.started(shim.bundle("c1"), stdin=data)
    assert "KATA_PY_CONFIG" not in set(shim.state("c1")["env"]) - set(os.environ)


def test_garbage_on_stdin_is_told_to_the_log(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    os.mkfifo(bundle / "log")
    log = os.open(bundle / "log", os.O_RDONLY | os.O_NONBLOCK)
    shim.started(bundle, stdin=b"\xff\xff")
    line = os.read(log, 4096)
    os.close(log)
    assert b'level=warning msg="ignoring what containerd sent on stdin" error="truncated varint"' in line


def test_a_log_that_is_no_fifo_is_not_written_to(shim: Shim) -> None:
    bundle = shim.bundle("c1")
    bundle.joinpath("log").write_text("")
    shim.started(bundle)
    assert shim.state("c1")["fds"]["2"] == "/dev/null" and stat.S_ISREG(bundle.joinpath("log").stat().st_mode)
