"""The pod's network: what the shim finds in a network namespace of the host and gives to the VM.

    bridge ── veth ═╪═ eth0 ⇄ tap0_kata ══ QEMU ══ eth0          (═╪═ the border of the pod's namespace)
                    │     tc: what comes in at one goes out at the other        (in the guest: same name,
                    │                                                            MAC, MTU, addresses, routes)

The namespace is entered by a child process only. Nothing that it makes outlives VM and shim but the queueing
discipline at an interface that was there before, which is on record (`shim.record.redirection`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from shim.value import Value


class Interface(Value):
    """As the guest is to have it. `addresses` are "10.1.0.2/24", "fd00::2/64"; `kind` is what the host's is (veth)."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[str, ...]
    kind: str = ""
    arp: bool = True


class Route(Value):
    """`destination` "10.0.0.0/8", or "" for everything; no `gateway`: everybody there is a neighbour. `scope` as in
    rtnetlink (0 everywhere, 253 the link); `mtu` 0: the interface's."""

    device: str
    destination: str = ""
    gateway: str = ""
    source: str = ""
    scope: int = 0
    ipv6: bool = False
    onlink: bool = False
    mtu: int = 0


class Neighbour(Value):
    """A permanent entry: `address` is at `mac` on `device`."""

    device: str
    address: str
    mac: str


class Endpoint(Value):
    """One interface on its way: the host's is joined to `tap`, behind which is a NIC that looks like it."""

    interface: Interface
    tap: str


class Network(Value):
    """All of it. `skipped` says in words what was found and stays behind."""

    endpoints: tuple[Endpoint, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    skipped: tuple[str, ...] = ()


class Attachment(Value):
    """Descriptors, the receiver's to close. `taps` in the order of the endpoints.

    `loopback` is a listening socket that gets every TCP connection to the namespace's loopback addresses, with
    the address dialled as its own, for as long as `redirect` is open. Without them `refused` says why.
    """

    taps: tuple[int, ...]
    loopback: int = -1
    redirect: int = -1
    refused: str = ""


class Netns(Protocol):
    """A network namespace that has been entered. Methods raise `errors.ShimError`."""

    async def scan(self) -> Network:
        """What is there for a VM. Changes nothing."""

    async def attach(self, network: Network) -> Attachment:
        """Make the taps and join each to its interface. On an error nothing of it stays."""


class HostNetwork(Protocol):
    """The host's network namespaces."""

    def enter(self, netns: str) -> AbstractAsyncContextManager[Netns]:
        """A child process in the namespace at a path. NotFound and the like when there is none."""

    def links(self, pid: int) -> Sequence[str]:
        """Names of the interfaces in a process's namespace, the loopback left out; none if it is gone."""
