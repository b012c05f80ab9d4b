"""The guest's network: the loopback at boot, and what UpdateInterface, UpdateRoutes and AddARPNeighbors ask for.

A NIC is known by its MAC address: it is hot-plugged, so the request may come first and waits for it. The kernel
answers rtnetlink in the call that asks, so nothing here is slow but that wait.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterable, Mapping

from shim import errors
from shim.guest import netlink
from shim.guest.netlink import Link, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = Mapping[str, Any]

# For a NIC that was plugged in a moment ago. Kata's own client tries again by itself.
LINK_S = 10.0
_BUFFER_SIZE = 1 << 18
_MAX_NAME = 15  # IFNAMSIZ without the NUL
_NUD_PERMANENT = 0x80
_IPV6 = "/proc/sys/net/ipv6/conf"


class Kernel:
    """An rtnetlink socket, opened at the first use. `groups` are the events that make it readable."""

    def __init__(self, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, groups))
        self._sequence = 0

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, request: Request) -> list[tuple[int, bytes]]:
        """The items of the answer. OSError with the kernel's error number."""
        self._sequence += 1
        self._socket.send(netlink.encode(request, self._sequence))
        items: list[tuple[int, bytes]] = []
        while True:
            reply = netlink.decode(self._socket.recv(_BUFFER_SIZE), self._sequence)
            items += reply.items
            if reply.done:
                return items

    def links(self) -> list[Link]:
        items = self.ask(netlink.dump(netlink.RTM_GETLINK))
        return [netlink.parse_link(body) for kind, body in items if kind == netlink.RTM_NEWLINK]

    async def event(self) -> None:
        """Until something of the groups has happened since the last question."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._socket, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._socket)


def loopback_up() -> None:
    """`ip link set lo up`; the kernel gives it its addresses."""
    with Kernel() as kernel:
        kernel.ask(netlink.set_link(1, flags=netlink.IFF_UP, mask=netlink.IFF_UP))


def trust_addresses(path: str = f"{_IPV6}/default/accept_dad") -> None:
    """No duplicate address detection on the NICs that come: of the pod's addresses the host's kernel has done it, and
    what the kernel adds, a link-local one by the MAC, is the pod's interface's too. Else it would be of no use for
    the first second or two."""
    try:
        with open(path, "w") as file:
            file.write("0")
    except FileNotFoundError:  # a kernel without IPv6
        return


async def update_interface(wanted: Message, timeout_s: float = LINK_S) -> None:
    """UpdateInterface: the NIC gets name, addresses and MTU, and is up."""
    name, mac = wanted.get("name", ""), wanted.get("hwAddr", "").lower()
    if not 0 < len(name.encode()) <= _MAX_NAME or "/" in name or not name.isprintable() or " " in name:
        raise errors.InvalidArgument(f"{name!r} is no name of an interface")
    with Kernel(netlink.RTMGRP_LINK) as kernel:
        link = await find_link(kernel, mac, name, timeout_s)
        try:
            _configure(kernel, link, wanted, name)
        except (OSError, ValueError) as error:
            raise _failure(f"interface {name}", error) from error


async def find_link(kernel: Kernel, mac: str, name: str, timeout_s: float) -> Link:
    """The link with this MAC, else the one with the name; waits for either. NotFound says `Link not found`, by which
    Kata's runtime knows that it may try again."""
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                links = [link for link in kernel.links() if not link.flags & netlink.IFF_LOOPBACK]
                for link in links:
                    if mac and link.mac == mac:
                        return link
                for link in links:
                    if not mac and link.name == name:
                        return link
                await kernel.event()
    except TimeoutError:
        raise errors.NotFound(f"Link not found: interface {name} with address {mac or 'any'}") from None


def _configure(kernel: Kernel, link: Link, wanted: Message, name: str) -> None:
    if link.name != name:
        for other in kernel.links():
            if other.name == name:  # it gets its own name when its turn comes
                _rename(kernel, other, f"moved{other.index}")
        _rename(kernel, link, name)
    kernel.ask(netlink.set_link(link.index, mtu=wanted.get("mtu", 0)))
    # The addresses first: of a link that is up the kernel would make the local one, and probe for it.
    for address in wanted.get("IPAddresses", []):
        text, length = address.get("address", ""), address.get("mask", "")
        if not length.isdecimal():
            raise ValueError(f"{length!r} is no length of a prefix")
        if netlink.pack_address(text)[0] == socket.AF_INET6 and not _has_ipv6():
            continue
        kernel.ask(netlink.add_address(link.index, text, int(length)))
    flags = netlink.IFF_UP | (wanted.get("raw_flags", 0) & netlink.IFF_NOARP)
    mask = netlink.IFF_UP | netlink.IFF_NOARP
    kernel.ask(netlink.set_link(link.index, flags=flags, mask=mask))


def _rename(kernel: Kernel, link: Link, name: str) -> None:
    if link.flags & netlink.IFF_UP:
        kernel.ask(netlink.set_link(link.index, mask=netlink.IFF_UP))
    kernel.ask(netlink.set_link(link.index, name=name))


def update_routes(wanted: Iterable[Message]) -> None:
    """UpdateRoutes: each is set; those that name no gateway first, for a gateway must be reachable."""
    with Kernel() as kernel:
        numbers = _numbers(kernel)
        for item in sorted(wanted, key=lambda item: bool(item.get("gateway"))):
            what = (
                f"route to {item.get('dest') or 'everywhere'} by {item.get('gateway') or item.get('device')}"
            )
            ipv6 = item.get("family", 0) == 1
            if ipv6 and not _has_ipv6():
                continue
            route = netlink.Route(
                _number(numbers, item, what),
                item.get("dest", ""),
                item.get("gateway", ""),
                item.get("source", ""),
                scope=item.get("scope", 0) & 0xFF,
                flags=item.get("flags", 0),
                mtu=item.get("mtu", 0),
                ipv6=ipv6,
            )
            try:
                kernel.ask(netlink.add_route(route))
            except (OSError, ValueError) as error:
                if not isinstance(error, OSError) or error.errno != errno.EEXIST:
                    raise _failure(what, error) from error


def add_neighbours(wanted: Iterable[Message]) -> None:
    """AddARPNeighbors: each is set."""
    with Kernel() as kernel:
        numbers = _numbers(kernel)
        for item in wanted:
            address = item.get("toIPAddress", {}).get("address", "")
            what = f"neighbour {address}"
            number, state = _number(numbers, item, what), item.get("state", 0) or _NUD_PERMANENT
            mac, flags = item.get("lladdr", ""), item.get("flags", 0)
            try:
                kernel.ask(netlink.add_neighbour(number, address, mac, state & 0xFFFF, flags & 0xFF))
            except (OSError, ValueError) as error:
                raise _failure(what, error) from error


def interfaces() -> list[Message]:
    """ListInterfaces: all but the loopback."""
    with Kernel() as kernel:
        links = [link for link in kernel.links() if not link.flags & netlink.IFF_LOOPBACK]
        items = kernel.ask(netlink.dump(netlink.RTM_GETADDR))
        found = [netlink.parse_address(body) for kind, body in items if kind == netlink.RTM_NEWADDR]
    return [
        {
            "device": link.name,
            "name": link.name,
            "IPAddresses": [
                {"family": int(":" in address.text), "address": address.text, "mask": str(address.length)}
                for address in found
                if address.link == link.index
            ],
            "mtu": link.mtu,
            "hwAddr": link.mac,
            "type": link.kind,
            "raw_flags": link.flags & netlink.IFF_NOARP,
        }
        for link in links
    ]


def routes() -> list[Message]:
    """ListRoutes: the main tables of both families."""
    with Kernel() as kernel:
        names = {number: name for name, number in _numbers(kernel).items()}
        items = kernel.ask(netlink.dump(netlink.RTM_GETROUTE))
    found = [netlink.parse_route(body) for kind, body in items if kind == netlink.RTM_NEWROUTE]
    return [
        {
            "dest": route.destination,
            "gateway": route.gateway,
            "device": names.get(route.link, ""),
            "source": route.source,
            "scope": route.scope,
            "family": int(route.ipv6),
            "flags": route.flags,
            "mtu": route.mtu,
        }
        for route in found
        if route is not None
    ]


def _numbers(kernel: Kernel) -> dict[str, int]:
    return {link.name: link.index for link in kernel.links()}


def _number(numbers: Mapping[str, int], item: Message, what: str) -> int:
    device = item.get("device", "")
    if device not in numbers:
        raise errors.NotFound(f"{what}: the guest has no interface {device!r}")
    return numbers[device]


def _has_ipv6() -> bool:
    try:
        with open(f"{_IPV6}/all/disable_ipv6") as file:
            return file.read().strip() == "0"
    except FileNotFoundError:
        return False


def _failure(what: str, error: OSError | ValueError) -> errors.ShimError:
    if isinstance(error, OSError):
        return errors.Internal(f"{what}: {error.strerror}")
    return errors.InvalidArgument(f"{what}: {error}")
