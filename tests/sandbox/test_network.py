"""The sandbox's network on its way from the pod's namespace into the guest, and back."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from pathlib import Path

import pytest

from shim.errors import Internal, ShimError, Unimplemented
from shim.hypervisor.api import VirtioNet
from shim.network.api import Endpoint, Interface, Neighbour, Network, Route
from tests.sandbox.stack import Stack, until, with_stack

# A name that no interface of a real machine has: undoing runs the real tc.
NET0 = Interface("kpt-none0", "02:00:00:00:00:01", 1400, ("10.88.0.2/24",))
NET1 = Interface("kpt-none1", "02:00:00:00:00:02", 1500, ("10.99.0.2/24",))
NETWORK = Network(
    (Endpoint(NET0, "tap0_kata"), Endpoint(NET1, "tap1_kata")),
    (Route("kpt-none0", gateway="10.88.0.1"),),
    (Neighbour("kpt-none0", "10.88.0.77", "02:00:00:00:00:77"),),
)
NETNS = "/proc/self/ns/net"


def redirections(shim: Stack) -> list[list[str]]:
    path = Path(shim.record.run_dir, "record.json")
    return [item["links"] for item in json.loads(path.read_text())["redirections"]] if path.exists() else []


def prepare(shim: Stack, network: Network = NETWORK) -> None:
    shim.netns, shim.network.network = NETNS, network


@with_stack
async def test_interfaces_are_plugged_in_before_the_cpus_run_and_then_told_to_the_agent(shim: Stack) -> None:
    prepare(shim)
    await shim.create()
    assert shim.network.calls == [f"enter:{NETNS}", "scan", "attach"]
    calls = shim.hypervisor.calls
    assert calls.index("add_device:net0") < calls.index("add_device:net1") < calls.index("resume")
    nics = [device for device in shim.hypervisor.devices if isinstance(device, VirtioNet)]
    assert [nic.mac for nic in nics] == [NET0.mac, NET1.mac]
    assert set(shim.agent.interfaces) == {NET0, NET1}
    assert (shim.agent.routes, shim.agent.neighbours) == (list(NETWORK.routes), list(NETWORK.neighbours))
    assert shim.agent.calls.index("update_routes") < shim.agent.calls.index("create_container")


@with_stack
async def test_what_is_redirected_is_on_record_until_it_is_undone(shim: Stack) -> None:
    prepare(shim)
    await shim.create()
    assert redirections(shim) == [["kpt-none0", "kpt-none1"]]
    await shim.sandbox.aclose()
    assert redirections(shim) == []


@with_stack
async def test_without_a_path_nothing_is_entered(shim: Stack) -> None:
    shim.netns = ""
    await shim.run()
    assert shim.network.calls == []


@with_stack
async def test_interfaces_that_come_before_the_first_start_are_taken_once(shim: Stack) -> None:
    shim.netns = ""
    await shim.create()
    shim.network.network, shim.network.present = NETWORK, ["kpt-none0", "kpt-none1"]
    await shim.start()
    assert shim.network.calls == [f"enter:/proc/{os.getpid()}/ns/net", "scan", "attach"]
    assert set(shim.agent.interfaces) == {NET0, NET1}
    assert shim.agent.calls.index("add_arp_neighbours") < shim.agent.calls.index("start_container")
    await shim.create("c2")
    await shim.start("c2")
    assert shim.network.calls.count("scan") == 1


async def dial(shim: Stack) -> socket.socket:
    client = socket.socket()
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", shim.network.port))
    return client


@with_stack
async def test_a_connection_to_the_loopback_is_handed_to_the_device(shim: Stack) -> None:
    prepare(shim, Network())
    await shim.run()
    client = await dial(shim)
    await until(lambda: bool(shim.device.ports))
    assert shim.device.ports == [10000 + shim.network.port]
    (stream,) = shim.device.streams.values()
    stream.write(b"from the guest")
    stream.finish()
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(client, 100) == b"from the guest"
    # The shim has let go of it: the device's end was the last.
    assert await loop.sock_recv(client, 100) == b""
    client.close()


@pytest.mark.parametrize(
    "error", [Unimplemented("service not found"), Internal("port 80: Connection refused")]
)
def test_a_port_that_the_guest_refuses_is_a_reset(tmp_path: Path, error: ShimError) -> None:
    @with_stack
    async def scenario(shim: Stack) -> None:
        prepare(shim, Network())
        await shim.run()
        shim.agent.fail["forward_port"] = error
        client = await dial(shim)
        with pytest.raises(ConnectionResetError):
            await asyncio.get_running_loop().sock_recv(client, 100)
        client.close()
        assert shim.device.ports == []

    scenario(tmp_path)


@with_stack
async def test_a_device_that_refuses_the_stream_is_a_reset_too(shim: Stack) -> None:
    prepare(shim, Network())
    await shim.create()
    shim.device.fail = Internal("no")
    client = await dial(shim)
    with pytest.raises(ConnectionResetError):
        await asyncio.get_running_loop().sock_recv(client, 100)
    client.close()


@with_stack
async def test_many_connections_wait_for_their_turn(shim: Stack) -> None:
    prepare(shim, Network())
    await shim.run()
    held = shim.agent.hold["forward_port"] = asyncio.Event()
    clients = [await dial(shim) for _ in range(40)]
    await until(lambda: shim.agent.calls.count("forward_port") == 32)
    await asyncio.sleep(0.01)
    assert shim.agent.calls.count("forward_port") == 32
    held.set()
    await until(lambda: len(shim.device.ports) == 40)
    for client in clients:
        client.close()


@with_stack
async def test_a_guest_that_refuses_interfaces_that_came_later_fails_the_start(shim: Stack) -> None:
    shim.netns = ""
    await shim.create()
    shim.network.network, shim.network.present = NETWORK, ["kpt-none0", "kpt-none1"]
    shim.agent.fail["update_interface"] = Internal("Link not found")
    with pytest.raises(Internal, match="Link not found"):
        await shim.start()
