"""The real scripts in a prefix of their own, laid out as an installation, with a fake daemon in it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from shim.record import Process

T = TypeVar("T")

ROOT = Path(__file__).resolve().parents[2]
SITE = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"

# Writes down how it was started, records itself as the real one does and serves until SIGTERM.
DAEMON = """
import json, os, resource, signal, socket, stat, sys
from shim.bootstrap.args import parse
from shim.record import Record

def main(argv):
    if os.path.exists("crash"):
        raise SystemExit("crashed at import")
    call = parse(argv)
    listener = socket.socket(fileno=3)
    kept = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            kept[fd] = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            pass
    state = {
        "argv": argv, "env": dict(os.environ), "fds": kept, "sid": os.getsid(0), "pid": os.getpid(),
        "oom": int(open("/proc/self/oom_score_adj").read()), "listening": listener.getsockname(),
        "ignored": [n for n in (1, 2, 3, 15, 17) if signal.getsignal(n) is signal.SIG_IGN],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        "path": sys.path, "flags": [sys.flags.isolated, sys.flags.no_site], "cwd": os.getcwd(),
    }
    record = Record.create(call.namespace, call.id, "unix://" + listener.getsockname())
    record.add_process("daemon", os.getpid())
    with open(record.run_dir + "/.fake", "w") as file:
        json.dump(state, file)
    os.rename(record.run_dir + "/.fake", record.run_dir + "/fake.json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        listener.accept()[0].close()
"""


def eventually(look: Callable[[], T], seconds: float = 10) -> T:
    """What `look` returns as soon as it is true; its last error or answer fails the test."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            found = look()
            if found or time.monotonic() > deadline:
                assert found
                return found
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.005)


class Shim:
    """Runs the script in bundles below a directory; `run` is the runtime directory it uses."""

    def __init__(self, tmp: Path) -> None:
        self.tmp, self.run, self.sockets = tmp, tmp / "run", tmp / "s"
        self.program = tmp / "prefix/bin/containerd-shim-kata-py-v2"
        self.grpc = str(tmp / "containerd.sock")
        self._install()

    def _install(self) -> None:
        package = self.tmp / "prefix" / SITE / "shim"
        package.mkdir(parents=True)
        for name in ("__init__.py", "errors.py", "log.py", "wire.py", "record", "bootstrap"):
            (package / name).symlink_to(ROOT / "shim" / name)
        (package / "daemon.py").write_text(DAEMON)
        self.program.parent.mkdir()
        text = (ROOT / "cmd/containerd-shim-kata-py-v2").read_text()
        # The one change: directories of the test's own in place of those below /run.
        places = (
            "import shim.bootstrap.address, shim.record.place\n"
            f"shim.record.place.RUN_DIR = {str(self.run)!r}\n"
            f"shim.bootstrap.address.SOCKET_DIR = {str(self.sockets)!r}\n"
        )
        assert "from shim.bootstrap.main" in text
        self.program.write_text(text.replace("from shim.bootstrap.main", places + "from shim.bootstrap.main"))
        self.program.chmod(0o755)

    def bundle(self, id: str, annotations: dict[str, str] | None = None) -> Path:
        path = self.tmp / "bundles" / id
        path.mkdir(parents=True)
        (path / "rootfs").mkdir()
        (path / "config.json").write_text(json.dumps({"ociVersion": "1.0", "annotations": annotations or {}}))
        return path

    def argv(self, action: str, id: str, *more: str, grpc: str = "") -> list[str]:
        flags = ["-namespace", "ns", "-address", grpc or self.grpc, "-publish-binary", "/bin/containerd"]
        return [str(self.program), *flags, "-id", id, *more, action]

    def popen(
        self, bundle: Path, *more: str, env: dict[str, str] | None = None, grpc: str = "", **options: Any
    ) -> "subprocess.Popen[bytes]":
        """`start`, with stdout and stderr merged as containerd reads them."""
        return subprocess.Popen(
            self.argv("start", bundle.name, *more, grpc=grpc),
            cwd=bundle,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            **options,
        )

    def start(self, bundle: Path, *more: str, stdin: bytes = b"", **options: Any) -> tuple[int, str]:
        """Exit status and output of `start`."""
        child = self.popen(bundle, *more, **options)
        output = child.communicate(stdin, timeout=40)[0]
        return child.returncode, output.decode()

    def started(self, bundle: Path, *more: str, **options: Any) -> str:
        """The path of the socket that a successful `start` printed."""
        status, output = self.start(bundle, *more, **options)
        assert status == 0 and output.startswith("unix:///"), output
        return output.removeprefix("unix://")

    def delete(self, bundle: Path, id: str = "") -> "subprocess.CompletedProcess[bytes]":
        argv = self.argv("delete", id or bundle.name, "-bundle", str(bundle))
        cwd = bundle if bundle.exists() else self.tmp
        return subprocess.run(
            argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False
        )

    def state(self, id: str) -> dict[str, Any]:
        """What the fake daemon of a sandbox wrote down, once it has."""
        text = eventually((self.run / "ns" / id / "fake.json").read_text)
        state: dict[str, Any] = json.loads(text)
        return state

    def daemons(self) -> list[int]:
        """Pids of the daemons that run, by the script in their command line."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(self.program).encode() in command and not {b"start", b"delete"} & set(command):
                found.append(int(entry.name))
        return found

    def kill(self, signal_: int = signal.SIGKILL) -> None:
        """End every daemon and wait until they are gone."""
        daemons = [Process.find("daemon", pid) for pid in self.daemons()]
        for daemon in daemons:
            os.kill(daemon.pid, signal_)
        for daemon in daemons:
            assert daemon.wait_gone(time.monotonic() + 10)
