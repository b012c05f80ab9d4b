"""What `check` and `env` find on hosts that are made of files."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest

from shim.cli import host
from shim.cli.check import Finding, check
from shim.cli.host import Containerd
from shim.config.model import Config
from shim.record import place

from .conftest import Tool


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Settings of a host where all is well."""
    monkeypatch.setattr(place, "RUN_DIR", str(tmp_path / "run"))
    outputs = {}
    for name in ("vmlinux", "initrd.cpio"):
        (tmp_path / name).write_text(name)
        outputs[name] = hashlib.sha256(name.encode()).hexdigest()
    (tmp_path / "versions.json").write_text(json.dumps({"kernel_release": "6.1", "outputs": outputs}))
    for name, says in (("qemu", "QEMU emulator version 8.1.0 (Debian)"), ("virtiofsd", "v")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tmp_path / name).chmod(0o755)
    return Config(
        kernel=tmp_path / "vmlinux",
        initrd=tmp_path / "initrd.cpio",
        hypervisor=str(tmp_path / "qemu"),
        virtiofsd=str(tmp_path / "virtiofsd"),
        template_dir=tmp_path / "templates",
    )


def containerd(folder: Path, toml: str = "", version: str = "1.7.24", pid: int | None = 1) -> Containerd:
    program = folder / "containerd"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{toml}\nEND\n")
    program.chmod(0o755)
    return Containerd(str(program), version, pid, str(folder))


def found(config: Config, daemon: Containerd) -> dict[str, Finding]:
    return {item.what: item for item in check(config, daemon)}


def test_on_a_good_host_nothing_is_bad(config: Config, tmp_path: Path) -> None:
    (tmp_path / host.SHIM).touch(0o755)
    section = '[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.vm]'
    runtimes = f'{section}\nruntime_type = "io.containerd.kata-py.v2"'
    all_of_it = found(config, containerd(tmp_path, runtimes))
    assert not [item for item in all_of_it.values() if item.state == "bad"]
    assert all_of_it["QEMU"].text == f"8.1.0 ({tmp_path}/qemu)"
    assert all_of_it["kernel, image"].state == "ok" and all_of_it["shim"].text == str(tmp_path / host.SHIM)
    assert all_of_it["CRI runtime"].text.startswith("vm in ")
    assert all_of_it["leftovers"].state == "ok"
    assert all_of_it["template"].state == "note" and all_of_it["template"].mend == "kata-py template create"


@pytest.mark.parametrize(
    ("spoil", "what", "words"),
    [
        ("rm qemu", "QEMU", ("program not found: ", "apt-get install qemu")),
        ("sed -i s/8.1.0/5.2.0/ qemu", "QEMU", ("5.2.0: want 7.2 or later", "apt-get install")),
        ("rm virtiofsd", "virtiofsd", ("program not found: ", "apt-get install")),
        ("rm vmlinux", "kernel", ("vmlinux: no such file", "hack/guest/build --out ")),
        (
            "echo >>initrd.cpio",
            "kernel, image",
            ("initrd.cpio is not what was built", "; hack/guest/build --out "),
        ),
        ("echo '[]' >versions.json", "kernel, image", ("versions.json makes no sense", "hack/guest/build")),
        ("true", "shim", ("containerd does not find containerd-shim-kata-py-v2", "ln -s ")),
    ],
)
def test_what_is_bad_says_what_mends_it(
    config: Config, tmp_path: Path, spoil: str, what: str, words: tuple[str, str]
) -> None:
    said, mend = words
    subprocess.run(["sh", "-ec", spoil], cwd=tmp_path, check=True)
    finding = found(config, containerd(tmp_path))[what]
    assert finding.state == "bad" and said in finding.text and mend in finding.mend


def test_a_host_without_tun_or_iproute2_gives_pods_no_network(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shim.cli.check._TUN", tmp_path / "tun")
    monkeypatch.setenv("PATH", str(tmp_path))
    all_of_it = found(config, containerd(tmp_path))
    assert all_of_it["network"].mend == "modprobe tun" and all_of_it["network"].state == "bad"
    assert all_of_it["iproute2"].mend == "apt-get install iproute2"
    assert all_of_it["util-linux"].text == "program not found: setpriv"


def test_containerd_may_be_absent_old_or_stopped(config: Config, tmp_path: Path) -> None:
    assert found(config, Containerd(None, None, None, ""))["containerd"].state == "bad"
    assert "want 1.6" in found(config, containerd(tmp_path, version="1.5.9"))["containerd"].text
    assert found(config, containerd(tmp_path, pid=None))["containerd"].mend == "systemctl start containerd"
    assert found(config, containerd(tmp_path))["CRI runtime"].mend.startswith("kata-py config containerd")


def test_the_exit_status_says_whether_anything_is_bad(
    tool: Tool, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.settings.write_text(config.to_toml())
    monkeypatch.setattr(host, "containerd", lambda: containerd(tmp_path))
    done = tool("check")
    assert done.code == 1 and "bad   shim " in done.out
    assert max(len(line) for line in done.out.splitlines() if not line.startswith(" ")) <= 80
    assert {item["state"] for item in json.loads(tool("check", "--json").out)} == {"ok", "note", "bad"}
    (tmp_path / host.SHIM).touch(0o755)
    assert tool("check").code == 0


def test_env_has_versions_paths_and_settings(
    tool: Tool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool.settings.write_text(config.to_toml())
    monkeypatch.setattr(host, "containerd", lambda: Containerd(None, None, None, ""))
    shown = tool("env", "--json").json
    assert shown["programs"]["hypervisor_version"] == "8.1.0" and shown["programs"]["containerd"] is None
    assert shown["settings"] == config.values() and shown["guest"]["kernel_release"] == "6.1"
    text = tool("env").out
    assert "[host]\n" in text and f"kernel                {config.kernel}\n" in text


def test_the_settings_are_containerds_unless_ours_say_otherwise(
    tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "theirs.toml"
    path.write_text("vcpus = 7\n")
    daemon = Containerd(None, None, None, "", settings={"KATA_PY_CONFIG": str(path)})
    monkeypatch.setattr(host, "containerd", lambda: daemon)
    assert tool("config", "show", "--json").json["vcpus"]["value"] == 1
    monkeypatch.delenv("KATA_PY_CONFIG")
    assert tool("config", "show", "--json").json["vcpus"] == {"value": 7, "origin": str(path)}
    assert tool("env", "--json").json["kata_py"]["settings_files"] == [str(path)]


@pytest.mark.parametrize(
    ("words", "config"),
    [
        (["containerd"], ()),
        (["containerd", "--config", "/c", "-l", "debug"], ("--config", "/c")),
        (["containerd", "-c=/c"], ("--config", "/c")),
        (["containerd", "--config"], ()),
    ],
)
def test_containerds_configuration_is_the_one_it_was_started_with(
    words: list[str], config: tuple[str, ...]
) -> None:
    assert host._config_arguments(words) == config


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1", (1, 6)),
        ("containerd github.com/containerd/containerd/v2 v2.1.9 abc", (2, 1)),
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", (7, 2)),
        ("nothing", (0, 0)),
    ],
)
def test_versions_are_found_in_what_programs_say(tmp_path: Path, said: str, number: tuple[int, int]) -> None:
    program = tmp_path / "p"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    assert host.numbers(host.version(str(program))) == number
