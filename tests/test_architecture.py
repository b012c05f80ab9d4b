"""The architecture is a test: who may import whom, which modules are pure, how long a file may grow.

The rules stand in one table, most specific package first; DESIGN.md explains them.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHIM = ROOT / "shim"
MAX_LINES = 330

# What everything may use, and what the pure modules may not.
BASE = {"shim.errors", "shim.log", "shim.value"}
IMPURE = {"asyncio", "socket", "subprocess", "select", "selectors", "threading", "time", "random", "signal"}
RPC_LIBRARIES = {"grpclib", "betterproto"}
HEAVY = RPC_LIBRARIES | {"asyncio", "click", "psutil", "typing", "dataclasses", "subprocess", "argparse"}

# package or module -> prefixes of ours that it may import (besides its own package)
MAY_IMPORT: dict[str, set[str]] = {
    "shim.errors": set(),
    "shim.log": set(),
    "shim.oci": {"shim.errors"},
    "shim.value": set(),
    "shim.wire": {"shim.errors"},
    "shim.vm_size": {"shim.value"},
    "shim.children": BASE,
    "shim.logfile": BASE,
    "shim.record": BASE,
    "shim.pb": set(),
    "shim.ttrpc": BASE | {"shim.wire"},
    "shim.bootstrap": BASE | {"shim.record", "shim.wire"},
    "shim.config": BASE,
    "shim.hypervisor": BASE | {"shim.children"},
    "shim.vm": BASE | {"shim.config", "shim.hypervisor.api", "shim.oci", "shim.vm_size"},
    "shim.template": BASE | {"shim.hypervisor.api"},
    "shim.rootfs": BASE | {"shim.children"},
    "shim.vsock": BASE,
    "shim.vsock.process": BASE | {"shim.children", "shim.vsock"},
    "shim.agent": BASE | {"shim.pb", "shim.ttrpc", "shim.oci", "shim.network.api", "shim.wire"},
    "shim.network": BASE | {"shim.children"},
    "shim.stdio": BASE | {"shim.vsock.api", "shim.agent.api", "shim.record", "shim.children"},
    "shim.sandbox": BASE
    | {"shim.oci", "shim.record", "shim.stdio", "shim.vm_size"}
    | {f"shim.{name}.api" for name in ("hypervisor", "vsock", "agent", "rootfs", "network")},
    "shim.task": BASE | {"shim.sandbox", "shim.agent.api", "shim.ttrpc", "shim.pb", "shim.oci"},
    "shim.controller": BASE
    | {"shim.sandbox", "shim.agent.api", "shim.task.convert", "shim.task.metrics", "shim.pb", "shim.oci"},
    "shim.cli": BASE
    | {f"shim.bootstrap.{name}" for name in ("address", "delete", "info")}
    | {"shim.children", "shim.config", "shim.introspect", "shim.logfile", "shim.pb.kata_py", "shim.record"}
    | {"shim.template.store", "shim.ttrpc.channel"}
    | {"shim.vsock.api", "shim.vsock.client"},
    "shim.introspect": BASE | {"shim.bootstrap.info", "shim.config", "shim.pb", "shim.sandbox", "shim.ttrpc"},
    "shim.guest": BASE | {"shim.ttrpc", "shim.wire", "shim.oci"},
}
# The composition roots, one for each program, alone name concrete drivers.
COMPOSITION_ROOTS = {"shim.daemon"} | {f"shim.cli.{name}" for name in ("check", "env", "main", "template")}

PURE = [
    "shim.agent.api",
    "shim.config.model",
    "shim.controller.pod",
    "shim.controller.total",
    "shim.errors",
    "shim.hypervisor.api",
    "shim.hypervisor.qemu.cmdline",
    "shim.network.api",
    "shim.network.plan",
    "shim.oci",
    "shim.rootfs.api",
    "shim.sandbox.states",
    "shim.sandbox.transforms",
    "shim.stdio.api",
    "shim.stdio.uri",
    "shim.template.key",
    "shim.ttrpc.connection",
    "shim.ttrpc.frame",
    "shim.value",
    "shim.vm_size",
    "shim.vsock.connection",
    "shim.vsock.handshake",
    "shim.vsock.header",
    "shim.vsock.muxer",
    "shim.vsock.vhost_user",
    "shim.vsock.vring",
    "shim.wire",
]

# Programs that must start fast and stay small: what their modules may not import at module level.
LIGHT: dict[str, set[str]] = {
    "shim.bootstrap": HEAVY,
    "shim.record": HEAVY,
    "shim.wire": HEAVY,
    "shim.ttrpc": RPC_LIBRARIES,
    "shim.guest": RPC_LIBRARIES | {"typing", "dataclasses", "subprocess", "click", "psutil"},
}
# All of shim.vsock is the device program's but the daemon's side of it.
DAEMON_SIDE = {"shim.vsock.api", "shim.vsock.client", "shim.vsock.process"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> list[Path]:
    return [p for p in sorted(SHIM.rglob("*.py")) if "pb" not in p.relative_to(SHIM).parts[:1]]


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names imported by a file, relative imports resolved; imports for type checkers left out."""
    tree = ast.parse(path.read_text(), str(path))
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    skipped = {
        id(n)
        for block in ast.walk(tree)
        if isinstance(block, ast.stmt) and is_type_checking(block)
        for child in block.body
        for n in ast.walk(child)
    }  # type: ignore[attr-defined]
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` names a module only if there is such a file
            for alias in node.names:
                full = f"{stem}.{alias.name}"
                as_path = ROOT.joinpath(*full.split("."))
                found.add(full if as_path.with_suffix(".py").exists() or as_path.is_dir() else stem)
    return found


def within(name: str, prefixes: set[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def rule_for(name: str) -> str | None:
    matches = [rule for rule in MAY_IMPORT if within(name, {rule})]
    return max(matches, key=len, default=None)


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_a_module_imports_only_what_its_place_allows(path: Path) -> None:
    name = module_name(path)
    if name == "shim" or name in COMPOSITION_ROOTS or name == "shim.cli":
        other = {"shim.daemon"} if within(name, {"shim.cli"}) else {"shim.cli"}
        forbidden = {i for i in imports(path) if within(i, {"shim.guest"} | other)}
        assert not forbidden
        return
    rule = rule_for(name)
    assert rule is not None, f"{name} has no rule in MAY_IMPORT: say where it belongs"
    ours = {i for i in imports(path) if within(i, {"shim"}) and i != "shim"}
    foreign = {i for i in ours if not within(i, MAY_IMPORT[rule] | {rule})}
    assert not foreign, f"{name} may not import {sorted(foreign)}"


@pytest.mark.parametrize("name", PURE)
def test_a_pure_module_does_no_io_and_has_no_clock(name: str) -> None:
    path = ROOT.joinpath(*name.split(".")).with_suffix(".py")
    assert path.exists(), f"{name} is listed as pure but does not exist"
    assert not {i for i in imports(path) if within(i, IMPURE)}


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_programs_that_start_often_stay_light(path: Path) -> None:
    name = module_name(path)
    limits = set().union(*(limit for rule, limit in LIGHT.items() if within(name, {rule})))
    if within(name, {"shim.vsock"}) and name not in DAEMON_SIDE:
        limits |= HEAVY | {"shim.pb"}
    heavy = {i for i in imports(path, top_level_only=True) if within(i, limits)}
    assert not heavy, f"{name} imports {sorted(heavy)} at module level"


@pytest.mark.parametrize("path", modules(), ids=module_name)
def test_a_file_holds_one_idea(path: Path) -> None:
    if "generated" in path.read_text()[:400].lower():
        pytest.skip("generated")
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_cmd_is_no_python_package() -> None:
    assert not (ROOT / "cmd" / "__init__.py").exists()
    assert "cmd" not in sys.modules or not str(sys.modules["cmd"].__file__).startswith(str(ROOT))


def test_there_is_no_room_without_a_name() -> None:
    vague = {"utils", "helpers", "common", "types", "misc", "manager"}
    assert not [p for p in SHIM.rglob("*.py") if p.stem in vague and "pb" not in p.parts]
