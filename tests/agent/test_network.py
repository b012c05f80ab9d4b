"""The network on its way to the agent, in Kata's messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from betterproto.lib.google.protobuf import Empty

from shim.agent.kata import KataAgent
from shim.errors import Unavailable, Unimplemented
from shim.log import Log
from shim.network.api import Interface, Neighbour, Route
from shim.pb import grpc, types
from shim.pb.kata_py import guest as pb_guest
from shim.ttrpc import memory
from shim.ttrpc.server import Server
from shim.ttrpc.service import from_grpclib


class Guest(grpc.AgentServiceBase):
    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def update_interface(
        self, update_interface_request: grpc.UpdateInterfaceRequest
    ) -> types.Interface:
        self.requests.append(update_interface_request.interface)
        return update_interface_request.interface

    async def update_routes(self, update_routes_request: grpc.UpdateRoutesRequest) -> grpc.Routes:
        self.requests += update_routes_request.routes.routes
        return update_routes_request.routes

    async def add_arp_neighbors(self, add_arp_neighbors_request: grpc.AddArpNeighborsRequest) -> Empty:
        self.requests += add_arp_neighbors_request.neighbors.arp_neighbors
        return Empty()


class Ports(pb_guest.GuestBase):
    async def forward_port(
        self, forward_port_request: pb_guest.ForwardPortRequest
    ) -> pb_guest.ForwardPortResponse:
        if forward_port_request.port == 81:
            raise Unavailable("port 81: refused")
        return pb_guest.ForwardPortResponse(vsock_port=5000 + forward_port_request.port)


async def agent_with(guest: Guest, *others: Any) -> tuple[KataAgent, Server]:
    server = Server([from_grpclib(service) for service in (guest, *others)], Log(2, "error"))
    return KataAgent(memory.connect(server), 5), server


def test_the_messages_are_kata_s() -> None:
    async def scenario() -> None:
        guest = Guest()
        agent, server = await agent_with(guest)
        await agent.update_interface(
            Interface("eth0", "02:00:00:00:00:01", 1400, ("10.1.0.2/24", "fd00::2/64"), "veth", arp=False)
        )
        await agent.update_routes(
            [
                Route("eth0", gateway="10.1.0.1"),
                Route("eth0", "fd01::/64", "fe80::1", ipv6=True, onlink=True, mtu=9),
            ]
        )
        await agent.add_arp_neighbours([Neighbour("eth0", "fd00::7", "02:00:00:00:00:07")])
        interface, first, second, neighbour = guest.requests
        assert (interface.device, interface.name, interface.hw_addr) == ("eth0", "eth0", "02:00:00:00:00:01")
        assert (interface.mtu, interface.type, interface.raw_flags) == (1400, "veth", 0x80)
        assert [(int(a.family), a.address, a.mask) for a in interface.ip_addresses] == [
            (0, "10.1.0.2", "24"),
            (1, "fd00::2", "64"),
        ]
        assert (first.dest, first.gateway, first.device, int(first.family)) == ("", "10.1.0.1", "eth0", 0)
        assert (second.dest, int(second.family), second.flags, second.mtu) == ("fd01::/64", 1, 4, 9)
        assert (neighbour.to_ip_address.address, int(neighbour.to_ip_address.family)) == ("fd00::7", 1)
        assert (neighbour.lladdr, neighbour.state) == ("02:00:00:00:00:07", 0x80)
        await agent.aclose()
        await server.aclose()

    asyncio.run(scenario())


def test_a_port_is_forwarded_by_our_agent_and_by_no_other() -> None:
    async def scenario() -> None:
        ours, server = await agent_with(Guest(), Ports())
        assert await ours.forward_port(80) == 5080
        with pytest.raises(Unavailable, match="port 81"):
            await ours.forward_port(81)
        await ours.aclose()
        await server.aclose()
        genuine, server = await agent_with(Guest())
        with pytest.raises(Unimplemented):
            await genuine.forward_port(80)
        await genuine.aclose()
        await server.aclose()

    asyncio.run(scenario())
