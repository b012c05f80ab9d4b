"""What the agent makes of Kata's network requests, on a kernel that is a list of links."""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from shim import errors
from shim.guest import netlink, network
from shim.guest.netlink import Link

from .loop import go

MAC = "02:00:00:00:00:01"
OTHER = "02:00:00:00:00:02"
Asked = list[tuple[int, bytes]]


class FakeKernel:
    """Links, and what was asked for. `arrivals` are links that come with each event; `fail` an error number for
    requests of a type."""

    links_: list[Link]
    arrivals: list[Link]
    asked: Asked
    fail: dict[int, int]

    def __init__(self, groups: int = 0) -> None:
        self.groups = groups

    def __enter__(self) -> FakeKernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def links(self) -> list[Link]:
        return list(self.links_)

    async def event(self) -> None:
        assert self.groups == netlink.RTMGRP_LINK
        if not self.arrivals:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(0)
        self.links_.append(self.arrivals.pop())

    def ask(self, request: netlink.Request) -> Asked:
        kind, _, body = request
        self.asked.append((kind, body))
        if number := self.fail.get(kind):
            raise OSError(number, os.strerror(number))
        return []


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[FakeKernel]:
    lo = link(1, "lo", "00:00:00:00:00:00", netlink.IFF_LOOPBACK)
    for name, value in {
        "links_": [lo, link(2, "eth0", MAC)],
        "arrivals": [],
        "asked": [],
        "fail": {},
    }.items():
        monkeypatch.setattr(FakeKernel, name, value, raising=False)
    monkeypatch.setattr(network, "Kernel", FakeKernel)
    return FakeKernel


def link(index: int, name: str, mac: str, flags: int = 0) -> Link:
    return Link(index, name, mac, 1500, flags=flags, kind="")


def wanted(**fields: Any) -> dict[str, Any]:
    address = {"address": "10.88.0.2", "mask": "24"}
    return {"name": "eth0", "hwAddr": MAC, "mtu": 1400, "IPAddresses": [address], **fields}


def renames(asked: Asked) -> list[tuple[int, str]]:
    """The links that were given a name, in order."""
    found = []
    for kind, body in asked:
        name = netlink.parse_link(body).name if kind == netlink.RTM_SETLINK else ""
        if name:
            found.append((struct.unpack_from("=i", body, 4)[0], name))
    return found


def test_an_interface_is_set_up_and_addressed(kernel: type[FakeKernel]) -> None:
    go(lambda: network.update_interface(wanted()))
    assert kernel.asked == [
        netlink.set_link(2, mtu=1400)[::2],
        netlink.add_address(2, "10.88.0.2", 24)[::2],
        netlink.set_link(2, flags=netlink.IFF_UP, mask=netlink.IFF_UP | netlink.IFF_NOARP)[::2],
    ]


def test_nics_do_not_probe_for_their_addresses(tmp_path: Path) -> None:
    (tmp_path / "accept_dad").write_text("1\n")
    network.trust_addresses(str(tmp_path / "accept_dad"))
    assert (tmp_path / "accept_dad").read_text() == "0"
    network.trust_addresses(str(tmp_path / "no-ipv6/accept_dad"))


def test_a_nic_that_is_still_being_plugged_in_is_waited_for(kernel: type[FakeKernel]) -> None:
    kernel.links_ = []
    kernel.arrivals = [link(5, "eth0", MAC), link(4, "eth7", OTHER)]
    go(lambda: network.update_interface(wanted()))
    assert struct.unpack_from("=i", kernel.asked[0][1], 4)[0] == 5


def test_a_nic_that_does_not_come_is_not_found_in_kata_s_words() -> None:
    async def scenario() -> None:
        with pytest.raises(errors.NotFound, match=f"Link not found.*eth0.*{OTHER}"):
            await network.update_interface(wanted(hwAddr=OTHER), timeout_s=0.01)

    go(scenario)


def test_a_name_that_another_nic_has_is_taken_from_it(kernel: type[FakeKernel]) -> None:
    kernel.links_ = [link(2, "eth0", OTHER, netlink.IFF_UP), link(3, "eth1", MAC)]
    go(lambda: network.update_interface(wanted()))
    assert renames(kernel.asked) == [(2, "moved2"), (3, "eth0")]
    assert (
        kernel.asked[0] == netlink.set_link(2, mask=netlink.IFF_UP)[::2]
    )  # only a link that is down can be renamed


@pytest.mark.parametrize("name", ["", "a/b", "much-too-long-name", "a b", "a\n"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    async def scenario() -> None:
        with pytest.raises(errors.InvalidArgument, match="no name"):
            await network.update_interface(wanted(name=name))

    go(scenario)


@pytest.mark.parametrize(
    "address",
    [
        {"address": "10.1.2.3", "mask": "x"},
        {"address": "x", "mask": "24"},
        {"address": "10.1.2.3", "mask": "40"},
    ],
)
def test_an_address_that_cannot_be_is_refused_by_name(address: dict[str, str]) -> None:
    async def scenario() -> None:
        with pytest.raises(errors.InvalidArgument, match="interface eth0"):
            await network.update_interface(wanted(IPAddresses=[address]))

    go(scenario)


def test_the_kernel_s_refusal_is_told(kernel: type[FakeKernel]) -> None:
    kernel.fail = {netlink.RTM_SETLINK: errno.EBUSY}

    async def scenario() -> None:
        with pytest.raises(errors.Internal, match="interface eth0: Device or resource busy"):
            await network.update_interface(wanted())

    go(scenario)


def test_routes_without_a_gateway_go_first(kernel: type[FakeKernel]) -> None:
    network.update_routes(
        [{"device": "eth0", "gateway": "10.88.0.1"}, {"device": "eth0", "dest": "10.77.0.0/16", "scope": 253}]
    )
    found = [netlink.parse_route(body) for _, body in kernel.asked]
    assert [route and route.gateway for route in found] == ["", "10.88.0.1"]


def test_a_route_that_is_there_is_no_error_another_failure_is(kernel: type[FakeKernel]) -> None:
    kernel.fail = {netlink.RTM_NEWROUTE: errno.EEXIST}
    network.update_routes([{"device": "eth0", "gateway": "10.88.0.1"}])
    kernel.fail = {netlink.RTM_NEWROUTE: errno.ENETUNREACH}
    with pytest.raises(errors.Internal, match=r"route to everywhere by 10\.88\.0\.1: Network is unreachable"):
        network.update_routes([{"device": "eth0", "gateway": "10.88.0.1"}])


def test_an_interface_that_is_not_there_is_named() -> None:
    with pytest.raises(errors.NotFound, match="net9"):
        network.update_routes([{"device": "net9", "dest": "10.0.0.0/8"}])
    with pytest.raises(errors.NotFound, match="net9"):
        network.add_neighbours([{"device": "net9", "toIPAddress": {"address": "10.0.0.1"}, "lladdr": MAC}])


def test_a_neighbour_is_permanent_unless_something_else_is_said(kernel: type[FakeKernel]) -> None:
    entry = {"device": "eth0", "toIPAddress": {"address": "10.88.0.77"}, "lladdr": OTHER}
    network.add_neighbours([entry, {**entry, "state": 2}])
    assert kernel.asked == [
        netlink.add_neighbour(2, "10.88.0.77", OTHER, state, 0)[::2] for state in (0x80, 2)
    ]


def test_a_bad_neighbour_is_refused_by_name() -> None:
    with pytest.raises(errors.InvalidArgument, match=r"neighbour 10\.88\.0\.77"):
        network.add_neighbours(
            [{"device": "eth0", "toIPAddress": {"address": "10.88.0.77"}, "lladdr": "nonsense"}]
        )


def test_the_real_kernel_answers_a_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whatever machine this is: the loopback has number 1 and these addresses."""
    monkeypatch.undo()
    with network.Kernel() as kernel:
        found = {link.index: link for link in kernel.links()}
        items = kernel.ask(netlink.dump(netlink.RTM_GETADDR))
    assert found[1].name == "lo" and found[1].flags & netlink.IFF_LOOPBACK
    addresses = [netlink.parse_address(body) for kind, body in items if kind == netlink.RTM_NEWADDR]
    assert ("127.0.0.1", 8) in [(address.text, address.length) for address in addresses if address.link == 1]
    assert all(set(route) >= {"dest", "device"} for route in network.routes())
    assert "lo" not in [interface["name"] for interface in network.interfaces()]
