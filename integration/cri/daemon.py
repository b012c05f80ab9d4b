"""A containerd with its CRI plugin, in a network namespace of its own.

The bridge that CNI makes, its addresses and rules are in that namespace and vanish with it; nothing of the
host's network is touched."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from integration.daemon import DISABLED, Containerd

PAUSE = "localhost/pause:latest"
CNI_PLUGINS = "/usr/lib/cni"
SUBNETS = ("10.88.0.0/16", "fd00:88::/64")

# containerd 1.x has one CRI plugin, 2.x two. No CAP_SYS_RESOURCE may be had where the tests run, without which
# a negative oom_score_adj cannot be set.
CRI_1 = """\
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni_plugins}"
    conf_dir = "{root}/cni"
    max_conf_num = 2
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata-py]
      runtime_type = "io.containerd.kata-py.v2"
      privileged_without_host_devices = true
"""
CRI_2 = """\
[plugins."io.containerd.nri.v1.nri"]
  disable = true
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "{snapshotter}"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["{cni_plugins}"]
    conf_dir = "{root}/cni"
    max_conf_num = 2
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata-py]
    runtime_type = "io.containerd.kata-py.v2"
    sandboxer = "{sandboxer}"
    privileged_without_host_devices = true
"""


class CriContainerd(Containerd):
    """As `Containerd`; `net` is the path of its network namespace, made by `start` and gone after `remove`."""

    def __init__(
        self,
        version: str,
        programs: Path,
        shims: Path,
        settings: str,
        level: str,
        *,
        snapshotter: str,
        sandboxer: str = "podsandbox",
    ):
        self.snapshotter, self.sandboxer = snapshotter, sandboxer
        super().__init__(version, programs, shims, settings, level)
        # A second runtime, as we tell people to configure it, with a settings file of its own.
        self.own_settings = self.root / "own/kata-py.toml"
        snippet = self.tool(
            "config", "containerd", "--version", version, "--config-path", str(self.own_settings)
        )
        with (self.root / "config.toml").open("a") as file:
            file.write(snippet.replace("runtimes.kata-py", "runtimes.kata-py-own"))
        self._netns = self.root.name
        self.net = Path("/run/netns", self._netns)
        self.prefix = ("nsenter", f"--net={self.net}")
        # CRI keeps everything in this namespace, whoever it is.
        self.namespace = "k8s.io"
        (self.root / "cni").mkdir()
        self.set_network([self.bridge()])

    def config(self, level: str, disabled: Sequence[str] = ()) -> str:
        disabled = [name for name in DISABLED if "cri" not in name]
        plugins = (CRI_2 if self.version == "2" else CRI_1).format(
            pause=PAUSE,
            cni_plugins=CNI_PLUGINS,
            root=self.root,
            snapshotter=self.snapshotter,
            sandboxer=self.sandboxer,
        )
        return super().config(level, disabled) + plugins

    def set_network(self, plugins: list[dict[str, Any]], name: str = "10-test") -> None:
        """The CNI plugins of pods started from now on (containerd watches the folder): of their first interface, or
        with another name, sorted behind, of their second."""
        conflist = {"cniVersion": "0.4.0", "name": f"{self.root.name}-{name}", "plugins": plugins}
        path = self.root / f"cni/{name}.conflist"
        path.with_suffix(".new").write_text(json.dumps(conflist))
        path.with_suffix(".new").rename(path)

    def bridge(self, name: str = "kata-py0", subnets: Sequence[str] = SUBNETS) -> dict[str, Any]:
        """CNI's bridge plugin with an address of each subnet for every pod."""
        ranges = [[{"subnet": subnet}] for subnet in subnets]
        routes = [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
        folder = f"{self.root}/cni-addresses"
        ipam = {"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": folder}
        return {"type": "bridge", "bridge": name, "isGateway": True, "ipam": ipam}

    def start(self) -> None:
        if not self.net.exists():
            self._ip("netns", "add", self._netns)
            self._ip("-n", self._netns, "link", "set", "lo", "up")
        super().start()

    def remove(self) -> None:
        super().remove()
        if self.net.exists():
            self._ip("netns", "del", self._netns)

    def _ip(self, *args: str) -> None:
        subprocess.run(["ip", *args], check=True)
