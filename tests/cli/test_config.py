import tomllib

import pytest

from shim.cli.config import snippet
from shim.config.model import Config

from .conftest import Tool


def test_show_is_a_settings_file_with_origins(tool: Tool) -> None:
    tool.settings.write_text('memory_mib = 512\nkernel_params = ["a=1", "b=2"]\n')
    done = tool("config", "show")
    assert tomllib.loads(done.out) == Config(memory_mib=512, kernel_params=("a=1", "b=2")).values()
    lines = done.out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("memory_mib = 512"))
    assert f"# {tool.settings}" in lines[at] + lines[at - 1]
    assert next(line for line in lines if line.startswith("vcpus")).endswith("# default")
    shown = tool("config", "show", "--json").json
    assert shown["memory_mib"] == {"value": 512, "origin": str(tool.settings)}
    assert shown["vcpus"] == {"value": 1, "origin": "default"}


def test_show_tells_what_a_sandbox_runs_with(tool: Tool) -> None:
    tool.record()
    with tool.live():
        shown = tool("config", "show", "--sandbox", "s1", "--json").json
    assert shown["kernel_params"] == {"value": ["a=1"], "origin": "annotation x"}
    assert shown["memory_mib"] == {"value": 256, "origin": "default"}
    done = tool("config", "show", "--sandbox", "s1")
    assert done.code == 1 and done.err.startswith("kata-py: sandbox s1: its shim (pid ")


def test_a_bad_settings_file_is_told_in_a_line(tool: Tool) -> None:
    tool.settings.write_text("memory = 5")
    for command in (("config", "show"), ("env",), ("check",)):
        done = tool(*command)
        assert done.code == 1 and done.err.startswith(f"kata-py: {tool.settings}: unknown setting 'memory'")


@pytest.mark.parametrize(
    ("version", "plugin"),
    [
        ("1.6", "io.containerd.grpc.v1.cri"),
        ("1.7", "io.containerd.grpc.v1.cri"),
        ("2", "io.containerd.cri.v1.runtime"),
    ],
)
def test_the_snippet_is_containerds(tool: Tool, version: str, plugin: str) -> None:
    text = tool("config", "containerd", "--version", version, "--config-path", '/a "b".toml').out
    runtime = tomllib.loads(text)["plugins"][plugin]["containerd"]["runtimes"]["kata-py"]
    assert runtime == {
        "runtime_type": "io.containerd.kata-py.v2",
        "pod_annotations": ["io.katacontainers.config.hypervisor.*"],
        "privileged_without_host_devices": True,
        "options": {"TypeUrl": "runtimeoptions.v1.Options", "ConfigPath": '/a "b".toml'},
    }
    assert (
        "options"
        not in tomllib.loads(snippet(version))["plugins"][plugin]["containerd"]["runtimes"]["kata-py"]
    )
