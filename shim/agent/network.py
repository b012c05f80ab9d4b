"""The network's values as agent.proto and types.proto have them (Kata: network.go, network_info_from_link.rs)."""

from __future__ import annotations

from shim.network.api import Interface, Neighbour, Route
from shim.pb import types
from shim.pb.types import IpFamily

_IFF_NOARP = 0x80  # <linux/if.h>
_RTNH_F_ONLINK = 4  # <linux/rtnetlink.h>
_NUD_PERMANENT = 0x80  # <linux/neighbour.h>


def interface_message(interface: Interface) -> types.Interface:
    addresses = []
    for item in interface.addresses:
        address, _, length = item.partition("/")
        addresses.append(types.IpAddress(family=_family(":" in address), address=address, mask=length))
    return types.Interface(
        device=interface.name,
        name=interface.name,
        ip_addresses=addresses,
        mtu=interface.mtu,
        hw_addr=interface.mac,
        type=interface.kind,
        raw_flags=0 if interface.arp else _IFF_NOARP,
    )


def route_message(route: Route) -> types.Route:
    return types.Route(
        dest=route.destination,
        gateway=route.gateway,
        device=route.device,
        source=route.source,
        scope=route.scope,
        family=_family(route.ipv6),
        flags=_RTNH_F_ONLINK if route.onlink else 0,
        mtu=route.mtu,
    )


def neighbour_message(neighbour: Neighbour) -> types.ArpNeighbor:
    family = _family(":" in neighbour.address)
    return types.ArpNeighbor(
        to_ip_address=types.IpAddress(family=family, address=neighbour.address),
        device=neighbour.device,
        lladdr=neighbour.mac,
        state=_NUD_PERMANENT,
    )


def _family(ipv6: bool) -> IpFamily:
    return IpFamily(1 if ipv6 else 0)
