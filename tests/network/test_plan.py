"""What iproute2 says of a namespace, and what is made of it."""

from __future__ import annotations

from typing import Any

import pytest

from shim.errors import Internal
from shim.network.api import Endpoint, Interface, Neighbour, Network, Route
from shim.network.plan import Found, plan

LO: dict[str, Any] = {
    "ifname": "lo",
    "flags": ["LOOPBACK", "UP", "LOWER_UP"],
    "mtu": 65536,
    "link_type": "loopback",
    "address": "00:00:00:00:00:00",
    "addr_info": [{"family": "inet", "local": "127.0.0.1", "prefixlen": 8, "scope": "host"}],
}


def link(name: str, *addresses: str, **other: Any) -> dict[str, Any]:
    infos = []
    for address in addresses:
        local, _, length = address.partition("/")
        infos.append({"local": local, "prefixlen": int(length), "scope": "global"})
    return {
        "ifname": name,
        "flags": ["BROADCAST", "MULTICAST", "UP", "LOWER_UP"],
        "mtu": 1500,
        "link_type": "ether",
        "address": "CA:21:30:74:99:E3",
        "linkinfo": {"info_kind": "veth"},
        "addr_info": infos,
        **other,
    }


def found(*links: dict[str, Any], routes: Any = (), routes6: Any = (), neighbours: Any = ()) -> Found:
    return Found(links, routes, routes6, neighbours)


def test_an_empty_namespace_is_no_network() -> None:
    assert plan(found()) == plan(found(LO)) == Network()


def test_every_ethernet_interface_with_an_address_gets_a_tap_of_its_own() -> None:
    network = plan(
        found(
            LO, link("eth0", "10.1.0.2/24", "fd00::2/64", mtu=1400), link("idle"), link("net1", "10.2.0.2/16")
        )
    )
    assert network.endpoints == (
        Endpoint(
            Interface("eth0", "ca:21:30:74:99:e3", 1400, ("10.1.0.2/24", "fd00::2/64"), "veth"), "tap0_kata"
        ),
        Endpoint(Interface("net1", "ca:21:30:74:99:e3", 1500, ("10.2.0.2/16",), "veth"), "tap1_kata"),
    )


def test_an_interface_that_is_no_ethernet_is_told_and_left_with_its_routes() -> None:
    network = plan(
        found(
            link("tun0", "10.3.0.1/24", link_type="none"),
            routes=[{"dst": "10.4.0.0/16", "dev": "tun0", "flags": []}],
            neighbours=[{"dst": "10.3.0.9", "dev": "tun0", "lladdr": "x", "state": ["PERMANENT"]}],
        )
    )
    assert (network.endpoints, network.routes, network.neighbours) == ((), (), ())
    assert "tun0" in network.skipped[0]


def test_a_link_without_arp_says_so() -> None:
    assert not plan(found(link("eth0", "10.1.0.2/24", flags=["NOARP", "UP"]))).endpoints[0].interface.arp


def test_routes_that_somebody_set_are_taken_those_without_a_gateway_first() -> None:
    routes = [
        {"dst": "default", "gateway": "10.1.0.1", "dev": "eth0", "flags": []},
        {"dst": "10.1.0.0/24", "dev": "eth0", "protocol": "kernel", "scope": "link", "prefsrc": "10.1.0.2"},
        {"dst": "10.77.0.0/16", "dev": "eth0", "scope": "link", "prefsrc": "10.1.0.2", "flags": []},
        {
            "dst": "10.78.0.1",
            "gateway": "10.55.0.1",
            "dev": "eth0",
            "flags": ["onlink"],
            "metrics": [{"mtu": 1300}],
        },
    ]
    routes6 = [
        {"dst": "fd00::/64", "dev": "eth0", "protocol": "kernel", "metric": 256},
        {"dst": "default", "gateway": "fe80::1", "dev": "eth0", "protocol": "ra"},
        {"dst": "default", "gateway": "fd00::1", "dev": "eth0", "metric": 1024, "pref": "medium"},
        {"dst": "fd77::1", "dev": "eth0"},
    ]
    network = plan(found(link("eth0", "10.1.0.2/24"), routes=routes, routes6=routes6))
    assert network.routes == (
        Route("eth0", "10.77.0.0/16", source="10.1.0.2", scope=253),
        Route("eth0", "fd77::1/128", ipv6=True),
        Route("eth0", gateway="10.1.0.1"),
        Route("eth0", "10.78.0.1/32", "10.55.0.1", onlink=True, mtu=1300),
        Route("eth0", gateway="fd00::1", ipv6=True),
    )
    assert network.skipped == ()


@pytest.mark.parametrize(
    "route",
    [
        {"type": "unreachable", "dst": "10.79.0.0/16", "flags": []},
        {"dst": "10.79.0.0/16", "nexthops": [{"gateway": "10.1.0.1"}, {"gateway": "10.1.0.3"}]},
        {"dst": "10.79.0.0/16", "via": {"family": "inet6", "host": "fe80::1"}, "dev": "eth0"},
    ],
)
def test_a_route_that_an_agent_cannot_be_told_is_named(route: dict[str, Any]) -> None:
    network = plan(found(link("eth0", "10.1.0.2/24"), routes=[route]))
    assert network.routes == () and "10.79.0.0/16" in network.skipped[0]


def test_only_permanent_neighbours_are_taken() -> None:
    neighbours = [
        {"dst": "10.1.0.1", "dev": "eth0", "lladdr": "02:00:00:00:00:01", "state": ["REACHABLE"]},
        {"dst": "10.1.0.7", "dev": "eth0", "state": ["FAILED"]},
        {"dst": "10.1.0.77", "dev": "eth0", "lladdr": "02:00:00:00:00:77", "state": ["PERMANENT"]},
    ]
    network = plan(found(link("eth0", "10.1.0.2/24"), neighbours=neighbours))
    assert network.neighbours == (Neighbour("eth0", "10.1.0.77", "02:00:00:00:00:77"),)


@pytest.mark.parametrize("bad", [{"addr_info": [{}]}, {"flags": None}, link("x", "1.2.3.4/5", mtu="much")])
def test_other_output_than_iproute2_s_is_an_error(bad: dict[str, Any]) -> None:
    with pytest.raises(Internal, match="iproute2"):
        plan(found(bad))
