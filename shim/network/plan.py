"""From what iproute2 says of a namespace to what is to be done. Pure.

Taken are Ethernet interfaces that have an address, with their addresses, the routes of the main table that
somebody set (the kernel makes its own anew in the guest, and learns anew from router advertisements), and permanent
neighbours. Fields: iproute2 `ip -json`; choice: Kata's runtimes (network_with_netns.rs, network_linux.go).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shim.errors import Internal
from shim.network.api import Endpoint, Interface, Neighbour, Network, Route
from shim.value import Value

Json = Mapping[str, Any]

_SCOPES = {"global": 0, "site": 200, "link": 253, "host": 254, "nowhere": 255}  # <linux/rtnetlink.h>
_OF_THE_KERNEL = ("kernel", "ra", "redirect")


class Found(Value):
    """The parsed output of `ip -d addr`, `ip route` of both families, and `ip neigh`."""

    links: Sequence[Json]
    routes: Sequence[Json]
    routes6: Sequence[Json]
    neighbours: Sequence[Json]


def plan(found: Found) -> Network:
    """Raises Internal for output that is not iproute2's."""
    try:
        return _plan(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Internal(f"iproute2 says what it should not: {error!r}") from error


def _plan(found: Found) -> Network:
    skipped: list[str] = []
    endpoints: list[Endpoint] = []
    for link in found.links:
        addresses = link.get("addr_info", [])
        if "LOOPBACK" in link["flags"] or not addresses:
            continue
        if link["link_type"] != "ether":
            skipped.append(f"interface {link['ifname']}: {link['link_type']} is no Ethernet")
            continue
        endpoints.append(Endpoint(_interface(link, addresses), f"tap{len(endpoints)}_kata"))
    moved = {endpoint.interface.name for endpoint in endpoints}
    routes = [
        *_routes(found.routes, moved, skipped, ipv6=False),
        *_routes(found.routes6, moved, skipped, ipv6=True),
    ]
    # A gateway must be reachable before a route can name it.
    routes.sort(key=lambda route: bool(route.gateway))
    neighbours = [
        Neighbour(item["dev"], item["dst"], item["lladdr"])
        for item in found.neighbours
        if "PERMANENT" in item.get("state", ()) and item["dev"] in moved and "lladdr" in item
    ]
    return Network(tuple(endpoints), tuple(routes), tuple(neighbours), tuple(skipped))


def _interface(link: Json, addresses: Iterable[Json]) -> Interface:
    return Interface(
        name=str(link["ifname"]),
        mac=str(link["address"]).lower(),
        mtu=int(link["mtu"]),
        addresses=tuple(f"{item['local']}/{item['prefixlen']}" for item in addresses),
        kind=str(link.get("linkinfo", {}).get("info_kind", "device")),
        arp="NOARP" not in link["flags"],
    )


def _routes(items: Iterable[Json], moved: set[str], skipped: list[str], *, ipv6: bool) -> list[Route]:
    routes = []
    for item in items:
        if item.get("protocol") in _OF_THE_KERNEL:
            continue
        destination = str(item["dst"])
        if item.get("type", "unicast") != "unicast" or "nexthops" in item or "via" in item:
            skipped.append(f"route {destination}: not of a kind that a guest's agent can be told")
            continue
        if item["dev"] not in moved:
            continue
        routes.append(
            Route(
                device=item["dev"],
                destination="" if destination == "default" else _prefix(destination, ipv6=ipv6),
                gateway=item.get("gateway", ""),
                source=item.get("prefsrc", ""),
                scope=_SCOPES[item.get("scope", "global")],
                ipv6=ipv6,
                onlink="onlink" in item.get("flags", ()),
                mtu=next((int(metric["mtu"]) for metric in item.get("metrics", ()) if "mtu" in metric), 0),
            )
        )
    return routes


def _prefix(destination: str, *, ipv6: bool) -> str:
    """iproute2 leaves the length out where it is the longest."""
    return destination if "/" in destination else f"{destination}/{128 if ipv6 else 32}"
