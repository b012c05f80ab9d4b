"""What there is on this host: programs and their versions, the containerd that runs, the guest image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from shim.config.load import BODY_VARIABLE, VARIABLE, load
from shim.config.model import Config
from shim.errors import NotFound
from shim.value import Value

SHIM = "containerd-shim-kata-py-v2"
_PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
_VERSION = re.compile(r"\bv?(\d+\.\d+[.\w~+-]*)")
_TIMEOUT_S = 20.0


def path(find: Callable[[], str]) -> str | None:
    """A program's path by a function that raises NotFound."""
    try:
        return find()
    except NotFound:
        return None


def output(*command: str, environ: dict[str, str] | None = None) -> str | None:
    """What a program says; None if it cannot be run or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False, env=environ
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def version(program: str | None) -> str | None:
    """The first version number in what `--version` says."""
    match = _VERSION.search(output(program, "--version") or "") if program else None
    return match[1] if match else None


def numbers(version: str | None) -> tuple[int, int]:
    """Major and minor; (0, 0) for none."""
    match = re.match(r"(\d+)\.(\d+)", version or "")
    return (int(match[1]), int(match[2])) if match else (0, 0)


def shim_program() -> Path:
    """The shim that was installed with this program."""
    return Path(sys.argv[0]).resolve().parent / SHIM


def memory_mib() -> int:
    return psutil.virtual_memory().total >> 20


class Containerd(Value):
    """The containerd that runs, or the one that would. `search` is where it looks for shims (as its PATH);
    `config` the arguments by which it was given its configuration, `settings` those of its variables that are
    about our settings."""

    program: str | None
    version: str | None
    pid: int | None
    search: str
    config: tuple[str, ...] = ()
    settings: Mapping[str, str] = MappingProxyType({})

    def shim(self) -> str | None:
        """The path of the shim that it would find."""
        return shutil.which(SHIM, path=self.search)

    def runtimes(self) -> dict[str, Any] | None:
        """The CRI plugin's table of runtimes, as containerd itself merges it; None if it cannot be had."""
        said = output(self.program, *self.config, "config", "dump") if self.program else None
        if said is None:
            return None
        found: dict[str, Any] = {}
        for name in ("io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"):
            plugin = tomllib.loads(said).get("plugins", {}).get(name, {})
            found |= plugin.get("containerd", {}).get("runtimes", {})
        return found


def containerd() -> Containerd:
    """The one that has run longest, which is the host's; else the one in PATH."""
    found = [
        item for item in psutil.process_iter(["name", "create_time"]) if item.info["name"] == "containerd"
    ]
    for process in sorted(found, key=lambda item: float(item.info["create_time"])):
        try:
            program, words, environ = process.exe(), process.cmdline(), process.environ()
            folder = process.cwd()
        except psutil.Error:
            continue  # it has ended
        search = f"{folder}:{environ.get('PATH', '')}:{os.path.dirname(program)}"
        settings = {name: environ[name] for name in (VARIABLE, BODY_VARIABLE) if name in environ}
        return Containerd(program, version(program), process.pid, search, _config_arguments(words), settings)
    search = f"{os.environ.get('PATH', '')}:{_PLACES}"
    installed = shutil.which("containerd", path=search)
    return Containerd(installed, version(installed), None, search)


def settings(daemon: Containerd) -> Config:
    """What a shim of this containerd gets, if our own environment does not say otherwise."""
    return load({**daemon.settings, **os.environ})


def _config_arguments(words: list[str]) -> tuple[str, ...]:
    """--config FILE, -c FILE or --config=FILE of a command line."""
    for number, word in enumerate(words):
        if word in ("--config", "-config", "-c") and number + 1 < len(words):
            return ("--config", words[number + 1])
        if word.startswith(("--config=", "-config=", "-c=")):
            return ("--config", word.partition("=")[2])
    return ()


def guest_versions(config: Config) -> dict[str, Any] | None:
    """What the builder of the guest image wrote down beside it; None for an image from elsewhere."""
    try:
        found: dict[str, Any] = json.loads((config.initrd.parent / "versions.json").read_text())
    except (OSError, ValueError):
        return None
    return found
