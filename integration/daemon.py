"""A containerd of our own: every folder, socket and setting is private to this test run."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from integration import process

CONFIG = """\
version = {version}
root = "{root}/root"
state = "{root}/state"
disabled_plugins = [{disabled}]
[grpc]
address = "{root}/sock"
[debug]
level = "{level}"
"""


# What the tests do not use: Kubernetes' interface, and a plugin that makes a folder in /opt.
DISABLED = ("grpc.v1.cri", "cri.v1.images", "cri.v1.runtime", "internal.v1.opt")


class Containerd:
    """One containerd, started and stopped by its own process id.

    `programs` is the folder of `containerd` and `ctr`; `shims` the one of the shim under test, which comes
    first in the daemon's PATH. `settings` is the shim's configuration as TOML.
    """

    # The words before containerd's own command line, such as those that put it into a network namespace.
    prefix: Sequence[str] = ()

    def __init__(self, version: str, programs: Path, shims: Path, settings: str, level: str = "info") -> None:
        self.version, self.programs = version, programs
        # Short, because Unix socket paths below it must stay under 107 bytes; the name is a namespace's too.
        self.root = Path("/tmp", f"kpt{secrets.token_hex(4)}")
        self.root.mkdir(mode=0o700)
        self.address = str(self.root / "sock")
        self.namespace = self.root.name
        self.log = self.root / "containerd.log"
        self.settings = self.root / "kata-py.toml"
        self.settings.write_text(settings)
        (self.root / "config.toml").write_text(self.config(level))
        system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        # A clean environment; everything containerd starts inherits the two names by which we find it again.
        self.env = {"PATH": f"{shims}:{programs}:{system}", "KATA_PY_CONFIG": str(self.settings)}
        self.shims = shims
        self._child: subprocess.Popen[bytes] | None = None

    def config(self, level: str, disabled: Sequence[str] = DISABLED) -> str:
        """containerd's own settings."""
        names = ", ".join(f'"io.containerd.{name}"' for name in disabled)
        version = 3 if self.version == "2" else 2
        return CONFIG.format(version=version, disabled=names, root=self.root, level=level)

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def bundles(self) -> Path:
        return self.root / "state/io.containerd.runtime.v2.task" / self.namespace

    def start(self) -> None:
        """Returns when containerd answers; AssertionError with the end of its log after 30 seconds."""
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [*self.prefix, self.programs / "containerd", "--config", self.root / "config.toml"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                cwd=self.root,
                start_new_session=True,
            )
        deadline = time.monotonic() + 30
        while self._ctr("version") != 0:
            assert self._child.poll() is None, f"containerd ended:\n{self.log_since(0)[-4000:]}"
            assert time.monotonic() < deadline, f"containerd does not answer:\n{self.log_since(0)[-4000:]}"
            time.sleep(0.1)

    def _ctr(self, *args: str) -> int:
        command = [str(self.programs / "ctr"), "--address", self.address, *args]
        return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode

    def tool(self, *args: str) -> str:
        """What `kata-py` says, with the settings of the shims."""
        command = [str(self.shims / "kata-py"), *args]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def stop(self, *, kill: bool = False) -> None:
        """Ends containerd alone: its shims and their VMs go on."""
        child, self._child = self._child, None
        if child is None:
            return
        if kill:
            child.kill()
        else:
            child.terminate()
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def remove(self) -> None:
        """Everything of this run away, also what a failed test left running or mounted."""
        for item in process.marked(str(self.root)).values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(item.pid, signal.SIGKILL)
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for place in sorted((place for place in mounts if place.startswith(f"{self.root}/")), reverse=True):
            subprocess.run(["umount", "--lazy", place], check=False)
        shutil.rmtree(self.root, ignore_errors=True)

    def shim_sockets(self, container: str) -> list[Path]:
        """Where a shim of `container` listens, named as containerd's own (pkg/shim SocketAddress)."""
        digest = hashlib.sha256(os.path.join(self.address, self.namespace, container).encode()).hexdigest()
        return [Path("/run/containerd/s", digest), self.root / "state/s" / digest]

    def shim_address(self, container: str) -> str:
        """The socket of the live shim of `container`, from what its bundle says."""
        bootstrap = self.bundles / container / "bootstrap.json"
        if bootstrap.exists():
            text = str(json.loads(bootstrap.read_text())["address"])
        else:
            text = (self.bundles / container / "address").read_text()
        assert text.startswith("unix://"), text
        return text.removeprefix("unix://")

    @contextlib.contextmanager
    def tracing(self) -> Iterator[None]:
        """A `start` inside makes it log at level trace."""
        config = self.root / "config.toml"
        before = config.read_text()
        config.write_text(self.config("trace"))
        try:
            yield
        finally:
            config.write_text(before)

    def set_for_shims(self, text: str) -> None:
        """TOML that overrides the settings for shims started from now on; "" takes it back."""
        drop_in = self.root / "config.d/test.toml"
        drop_in.parent.mkdir(exist_ok=True)
        drop_in.write_text(text)

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, offset: int) -> str:
        """containerd's log, which carries the shims' lines, from a byte offset on."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")
