"""Network namespaces for tests: a pod's, as a CNI plugin would leave it, and the LAN at the other end of its veths."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Names, addresses and MTUs of the pod's interfaces; the LAN has the same addresses with 1 at the end.
ETH0 = ("eth0", 1400, ["10.88.0.2/24", "fd88::2/64"])
NET1 = ("net1", 1500, ["10.99.0.2/24"])
NEIGHBOUR = ("10.88.0.77", "02:00:00:00:00:77")
RUN = Path("/run/netns")


class Netns:
    """A named namespace, made with its loopback up."""

    def __init__(self, name: str) -> None:
        self.name, self.path = name, str(RUN / name)
        subprocess.run(["ip", "netns", "add", name], check=True)
        self.ip("link", "set", "lo", "up")

    def argv(self, *command: str) -> list[str]:
        """`command`, to be run there."""
        return ["nsenter", f"--net={self.path}", "--", *command]

    def __call__(self, *command: str, stdin: bytes = b"", timeout: float = 60, check: bool = True) -> bytes:
        """What a command says there."""
        done = subprocess.run(
            self.argv(*command), input=stdin, capture_output=True, timeout=timeout, check=False
        )
        assert done.returncode == 0 or not check, (command, done.returncode, done.stderr.decode())
        return done.stdout

    def ip(self, *words: str) -> Any:
        """The parsed answer of an `ip -json` command, None without one."""
        answer = self("ip", "-json", *words)
        return json.loads(answer) if answer.strip() else None

    def links(self) -> set[str]:
        return {link["ifname"] for link in self.ip("link", "show")}

    def qdiscs(self) -> set[str]:
        """Interfaces with a qdisc for what comes in."""
        listed = json.loads(self("tc", "-json", "qdisc", "show"))
        return {item["dev"] for item in listed if item["kind"] == "ingress"}

    def python(self, code: str, *args: str, **more: Any) -> bytes:
        return self("python3", "-c", code, *args, **more)

    def remove(self) -> None:
        subprocess.run(["ip", "netns", "del", self.name], check=True)


class Lan:
    """Two bridges in a namespace of their own, and pods at them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.netns = Netns(f"{name}-lan")
        self.pods: list[Netns] = []
        for number, (_, mtu, addresses) in enumerate((ETH0, NET1)):
            bridge = f"br{number}"
            self.netns.ip("link", "add", bridge, "mtu", str(mtu), "type", "bridge")
            for address in addresses:
                mine = address.replace(".2/", ".1/").replace("::2/", "::1/")
                self.netns.ip("address", "add", mine, "dev", bridge, *_nodad(mine))
            self.netns.ip("link", "set", bridge, "up")

    def pod(self, interfaces: Sequence[tuple[str, int, list[str]]] = (ETH0, NET1)) -> Netns:
        """A pod's namespace with these interfaces, a default route by the first, and one by the second."""
        pod = Netns(f"{self.name}-pod{len(self.pods)}")
        self.pods.append(pod)
        for number, interface in enumerate(interfaces):
            self.connect(pod, interface, f"br{number}")
        if interfaces:
            pod.ip("route", "add", "default", "via", "10.88.0.1")
            pod.ip("-6", "route", "add", "default", "via", "fd88::1")
            pod.ip(
                "neighbour", "add", NEIGHBOUR[0], "lladdr", NEIGHBOUR[1], "dev", "eth0", "nud", "permanent"
            )
        if len(interfaces) > 1:
            pod.ip("route", "add", "10.77.0.0/16", "via", "10.99.0.1", "dev", "net1")
        return pod

    def connect(self, pod: Netns, interface: tuple[str, int, list[str]], bridge: str) -> None:
        name, mtu, addresses = interface
        outer = f"v{len(self.netns.links())}"
        self.netns.ip("link", "add", outer, "mtu", str(mtu), "type", "veth", "peer", name, "netns", pod.name)
        self.netns.ip("link", "set", outer, "master", bridge, "up")
        pod.ip("link", "set", name, "mtu", str(mtu), "up")
        for address in addresses:
            pod.ip("address", "add", address, "dev", name, *_nodad(address))

    def remove(self) -> None:
        for pod in self.pods:
            pod.remove()
        self.netns.remove()


def _nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []
