"""rtnetlink messages to bytes and back. The vectors are laid out by hand after <linux/rtnetlink.h>."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from shim.guest import netlink

ETH0 = bytes.fromhex(
    "00000000 1000 0200 07000000 00000000"  # nlmsghdr: length (below), RTM_NEWLINK, NLM_F_MULTI, sequence 7
    " 00 00 0100 02000000 43100000 00000000"  # ifinfomsg: ether, index 2, UP|BROADCAST|RUNNING|MULTICAST|LOWER_UP
    " 0900 0300 6574683000 000000"  # IFLA_IFNAME "eth0"
    " 0800 0400 78050000"  # IFLA_MTU 1400
    " 0a00 0100 ca21307499e3 0000"  # IFLA_ADDRESS
    " 1000 1280 0900 0100 7665746800 000000".replace(" ", "")  # IFLA_LINKINFO { IFLA_INFO_KIND "veth" }
)
ETH0 = struct.pack("=I", len(ETH0)) + ETH0[4:]
DONE = struct.pack("=IHHIIi", 20, 3, 2, 7, 0, 0)


def error(code: int, sequence: int = 7) -> bytes:
    return struct.pack("=IHHIIi", 36, 2, 0, sequence, 0, -code) + bytes(16)


def test_a_link_is_read() -> None:
    reply = netlink.decode(ETH0 + DONE, 7)
    assert reply.done and [kind for kind, _ in reply.items] == [netlink.RTM_NEWLINK]
    link = netlink.parse_link(reply.items[0][1])
    assert (link.index, link.name, link.mac, link.mtu) == (2, "eth0", "ca:21:30:74:99:e3", 1400)
    assert link.kind == "veth" and link.flags & netlink.IFF_UP


def test_an_answer_of_several_datagrams_is_done_with_its_last() -> None:
    assert not netlink.decode(ETH0, 7).done
    assert netlink.decode(DONE, 7).done


def test_the_kernel_s_refusal_is_an_oserror_and_its_assent_the_end() -> None:
    with pytest.raises(FileExistsError):
        netlink.decode(error(errno.EEXIST), 7)
    assert netlink.decode(error(0), 7).done


def test_events_and_answers_to_others_are_left_out() -> None:
    assert netlink.decode(ETH0 + error(errno.EPERM, sequence=6), 8).items == []


@pytest.mark.parametrize("length", [0, 3, 15, 1000])
def test_a_length_that_cannot_be_is_refused(length: int) -> None:
    with pytest.raises(ValueError):
        netlink.decode(struct.pack("=I", length) + ETH0[4:], 7)


def test_no_cut_makes_anything_but_a_value_error() -> None:
    body = ETH0[16:]
    for end in range(16, len(body)):
        try:
            netlink.parse_link(body[:end])
        except (ValueError, struct.error):
            continue
    for end in range(1, len(ETH0)):
        with pytest.raises(ValueError):
            netlink.decode(ETH0[:end], 7)


def test_a_dump_is_asked_for() -> None:
    data = netlink.encode(netlink.dump(netlink.RTM_GETLINK), 5)
    assert data == bytes.fromhex("20000000 1200 0103 05000000 00000000".replace(" ", "")) + bytes(16)


def test_a_link_is_named_sized_and_set_up() -> None:
    data = netlink.encode(netlink.set_link(2, flags=1, mask=0x81, name="eth0", mtu=1400), 6)
    assert data == bytes.fromhex(
        "34000000 1300 0500 06000000 00000000"  # RTM_SETLINK, REQUEST|ACK
        " 0000 0000 02000000 01000000 81000000"
        " 0900 0300 6574683000 000000"
        " 0800 0400 78050000".replace(" ", "")
    )


def test_an_ipv4_address_has_its_broadcast() -> None:
    kind, flags, body = netlink.add_address(2, "10.88.0.2", 24)
    assert (kind, flags) == (netlink.RTM_NEWADDR, 0x504)  # CREATE|REPLACE|ACK
    assert body == bytes.fromhex(
        "02 18 00 00 02000000 0800 0200 0a580002 0800 0100 0a580002 0800 0400 0a5800ff".replace(" ", "")
    )


def test_a_host_s_address_has_none() -> None:
    assert len(netlink.add_address(2, "10.88.0.2", 32)[2]) == 8 + 2 * 8


def test_an_ipv6_address_is_not_probed_for() -> None:
    body = netlink.add_address(3, "fd88::2", 64)[2]
    assert body[:8] == bytes([socket.AF_INET6, 64, 0x02, 0, 3, 0, 0, 0])
    assert len(body) == 8 + 2 * 20


def route(**fields: object) -> netlink.Route:
    given = {"destination": "", "gateway": "", "source": "", "scope": 0, "flags": 0, "mtu": 0, "ipv6": False}
    return netlink.Route(2, **{**given, **fields})  # type: ignore[arg-type]


def test_a_route_has_what_it_is_given() -> None:
    data = netlink.add_route(route(destination="10.77.0.0/16", gateway="10.99.0.1", mtu=1300, flags=4))[2]
    assert data == bytes.fromhex(
        "02 10 00 00 fe 03 00 01 04000000"  # IPv4, /16, main table, boot, universe, unicast, onlink
        " 0800 0400 02000000"  # RTA_OIF
        " 0800 0100 0a4d0000"  # RTA_DST
        " 0800 0500 0a630001"  # RTA_GATEWAY
        " 0c00 0800 0800 0200 14050000".replace(" ", "")  # RTA_METRICS { RTAX_MTU }
    )


@pytest.mark.parametrize(
    "given",
    [
        route(gateway="10.88.0.1"),
        route(destination="10.77.0.0/16", source="10.88.0.2", scope=253),
        route(destination="10.78.0.0/16", gateway="10.55.0.1", flags=4, mtu=1300),
        route(gateway="fd88::1", ipv6=True),
        route(destination="fd77::1/128", ipv6=True),
    ],
)
def test_a_route_is_read_as_it_was_written(given: netlink.Route) -> None:
    found = netlink.parse_route(netlink.add_route(given)[2])
    assert found is not None
    assert {name: getattr(found, name) for name in netlink.Route.__slots__} == {
        name: getattr(given, name) for name in netlink.Route.__slots__
    }


def test_routes_of_other_tables_and_kinds_are_none() -> None:
    body = netlink.add_route(route(destination="10.0.0.0/8"))[2]
    assert netlink.parse_route(body[:4] + b"\xff" + body[5:]) is None  # the local table
    assert netlink.parse_route(body[:7] + b"\x07" + body[8:]) is None  # unreachable


def test_a_neighbour_has_both_of_its_addresses() -> None:
    kind, _, body = netlink.add_neighbour(2, "10.88.0.77", "02:00:00:00:00:77", 0x80, 0)
    assert kind == netlink.RTM_NEWNEIGH
    assert body == bytes.fromhex(
        "02 000000 02000000 8000 00 00 0800 0100 0a58004d 0a00 0200 020000000077 0000".replace(" ", "")
    )


@pytest.mark.parametrize("text", ["", "10.0.0", "10.0.0.256", "fd::1::2", "host", "10.0.0.1\0"])
def test_what_is_no_address_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="no IPv"):
        netlink.add_address(2, text, 24)


@pytest.mark.parametrize("text", ["", "02:00:00:00:00", "02:00:00:00:00:0g", "2:0:0:0:0:1"])
def test_what_is_no_mac_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        netlink.add_neighbour(2, "10.0.0.1", text, 0x80, 0)


def test_a_prefix_is_no_longer_than_the_address() -> None:
    with pytest.raises(ValueError, match="prefix"):
        netlink.add_address(2, "10.0.0.1", 33)
