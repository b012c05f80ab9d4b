"""`crictl` as a user runs it, and the objects a kubelet would hand to CRI."""

from __future__ import annotations

import itertools
import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from integration.cri.daemon import CriContainerd
from integration.ctr import IMAGE, Done, Terminal

TIMEOUT_S = 100.0

# Kubernetes' default: a pod's network and IPC are one, every container has its own processes (CRI's own default
# is a shared pid namespace, 0).
OWN_PIDS = {"security_context": {"namespace_options": {"network": 0, "pid": 1, "ipc": 0}}}
SHARED_PIDS = {"security_context": {"namespace_options": {"network": 0, "pid": 0, "ipc": 0}}}


class Crictl:
    """Calls crictl on one containerd. `handler` is the runtime's name in containerd's configuration."""

    def __init__(self, daemon: CriContainerd, program: Path, handler: str) -> None:
        self.daemon, self.program, self.handler = daemon, program, handler
        self.configs = daemon.root / "crictl"
        self.configs.mkdir()
        self.settings = self.configs / "crictl.yaml"  # or it complains that there is none
        self.settings.write_text("{}\n")
        self._number = itertools.count(1)

    def argv(self, *args: str) -> list[str]:
        # The streams of exec, attach and port-forward come from a server on containerd's own loopback.
        endpoint = f"unix://{self.daemon.address}"
        options = ["--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", f"{TIMEOUT_S}s"]
        options += ["--config", str(self.settings)]
        return ["nsenter", f"--net={self.daemon.net}", str(self.program), *options, *args]

    def __call__(self, *args: str, stdin: bytes | None = None, timeout: float = TIMEOUT_S) -> Done:
        """Runs crictl to its end. TimeoutExpired when it hangs."""
        source: dict[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(self.argv(*args), capture_output=True, timeout=timeout, check=False, **source)
        return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    def terminal(self, *args: str) -> Terminal:
        return Terminal(self.argv(*args), 24, 80)

    def spawn(self, *args: str, **more: Any) -> subprocess.Popen[bytes]:
        """A crictl in the background with pipes; the caller ends it."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **more}
        return subprocess.Popen(self.argv(*args), **pipes)

    def wait_ready(self, timeout: float = 30) -> None:
        """Until CRI answers and its network plugins are ready."""
        deadline = time.monotonic() + timeout
        while True:
            done = self("info", "-o", "json")
            conditions = json.loads(done.out)["status"]["conditions"] if done.code == 0 else []
            if conditions and all(item["status"] for item in conditions):
                return
            assert time.monotonic() < deadline, f"CRI is not ready: {conditions or done.err}"
            time.sleep(0.1)

    # -- pods --------------------------------------------------------------------------------------------------

    def pod_config(self, **config: Any) -> Path:
        """A file with a PodSandboxConfig (CRI v1): one without a network of its own settings but a name."""
        name = f"pod{next(self._number)}"
        logs = self.daemon.root / "logs" / name
        logs.mkdir(parents=True)
        metadata = {"name": name, "uid": f"uid-{name}", "namespace": "tests", "attempt": 0}
        default = {"metadata": metadata, "hostname": name, "log_directory": str(logs), "linux": OWN_PIDS}
        return self._file(name, {**default, **config})

    def run_pod(self, handler: str = "", **config: Any) -> Pod:
        path = self.pod_config(**config)
        done = self("runp", "--runtime", handler or self.handler, str(path))
        return Pod(self, done.ok().text.strip(), path)

    def pods(self) -> list[str]:
        return self("pods", "-q").ok().text.split()

    def containers(self) -> list[str]:
        return self("ps", "-aq").ok().text.split()

    def _file(self, name: str, value: object) -> Path:
        path = self.configs / f"{name}-{next(self._number)}.json"
        path.write_text(json.dumps(value))
        return path

    # -- containers --------------------------------------------------------------------------------------------

    def inspect(self, container: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("inspect", container).ok().out)
        return found

    def status(self, container: str) -> dict[str, Any]:
        """ContainerStatus (CRI v1)."""
        found: dict[str, Any] = self.inspect(container)["status"]
        return found

    def ended(self, container: str, timeout: float = 60) -> dict[str, Any]:
        """The status of a container once it has exited."""
        deadline = time.monotonic() + timeout
        while (status := self.status(container))["state"] != "CONTAINER_EXITED":
            assert time.monotonic() < deadline, f"{container} is {status['state']} after {timeout} s"
            time.sleep(0.1)
        return status

    def exec(self, container: str, *command: str, options: Sequence[str] = (), **more: Any) -> Done:
        """`crictl exec`, its streams by containerd's streaming server: byte for byte, as `--sync` is not."""
        return self("exec", *options, container, *command, **more)

    def sh(self, container: str, script: str) -> str:
        """What a shell script in the container prints; it must succeed."""
        return self.exec(container, "sh", "-c", script).ok().text


class Pod:
    """One pod sandbox and how containers are made in it."""

    def __init__(self, crictl: Crictl, id: str, config: Path) -> None:
        self.crictl, self.id, self.config = crictl, id, config

    @property
    def logs(self) -> Path:
        return Path(json.loads(self.config.read_text())["log_directory"])

    @property
    def addresses(self) -> list[str]:
        """As CRI tells them: IPv4, then IPv6."""
        network = json.loads(self.crictl("inspectp", self.id).ok().out)["status"]["network"]
        return [network["ip"], *(item["ip"] for item in network["additionalIps"])]

    def container(self, *command: str, **config: Any) -> str:
        """A created container; its id. `config` goes into the ContainerConfig (CRI v1)."""
        name = config.pop("name", None) or f"c{next(self.crictl._number)}"
        default = {
            "metadata": {"name": name, "attempt": 0},
            "image": {"image": IMAGE},
            "command": list(command),
            "log_path": f"{name}.log",
            "linux": OWN_PIDS,
        }
        path = self.crictl._file(name, {**default, **config})
        return self.crictl("create", "--no-pull", self.id, str(path), str(self.config)).ok().text.strip()

    def run(self, *command: str, **config: Any) -> str:
        """A started container; its id."""
        container = self.container(*command, **config)
        self.crictl("start", container).ok()
        return container

    def log(self, container: str) -> list[tuple[str, str]]:
        """(stream, line) of each whole line in the container's log file."""
        lines = Path(self.crictl.status(container)["logPath"]).read_text().splitlines()
        return [(stream, text) for _, stream, _, text in (line.split(" ", 3) for line in lines)]

    def remove(self) -> None:
        """stopp and rmp, which must succeed."""
        self.crictl("stopp", self.id).ok()
        self.crictl("rmp", self.id).ok()
