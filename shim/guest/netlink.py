"""rtnetlink, as much of it as the agent needs: messages to bytes and back. Nothing is sent here.

    +------------------ nlmsghdr, 16 bytes ------------------+----------------+---------------------------+
    | length u32 | type u16 | flags u16 | seq u32 | pid u32  | family header  | attributes, each padded   |
    +--------------------------------------------------------+----------------+ to 4: length u16, type u16,
      host byte order; length counts from the header on                         payload

Sources: netlink(7), rtnetlink(7), <linux/rtnetlink.h>, <linux/if_addr.h>, <linux/if_link.h>, <linux/neighbour.h>.
"""

from __future__ import annotations

import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

RTM_NEWLINK, RTM_GETLINK, RTM_SETLINK = 16, 18, 19
RTM_NEWADDR, RTM_GETADDR = 20, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26
RTM_NEWNEIGH = 28

IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80
RTMGRP_LINK = 1

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_REPLACE, _CREATE = 0x100, 0x400

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_INFO_KIND = 1, 3, 4, 18, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PREFSRC, _RTA_METRICS, _RTAX_MTU = 1, 4, 5, 7, 8, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_RT_TABLE_MAIN, _RTPROT_BOOT, _RTN_UNICAST = 254, 3, 1

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, mask of flags
_ADDRESS = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
# family, lengths of dst and src, tos, table, protocol, scope, type, flags
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")  # family, index, state, flags, type


class Link:
    """One of the guest's interfaces."""

    __slots__ = ("flags", "index", "kind", "mac", "mtu", "name")

    def __init__(self, index: int, name: str, mac: str, mtu: int, *, flags: int, kind: str) -> None:
        self.index, self.name, self.mac, self.mtu = index, name, mac, mtu
        self.flags, self.kind = flags, kind


class Address:
    """`text` without the length of its prefix, `length`; on the link with number `link`."""

    __slots__ = ("length", "link", "text")

    def __init__(self, link: int, text: str, length: int) -> None:
        self.link, self.text, self.length = link, text, length


class Route:
    """`destination` "10.0.0.0/8", "" for everything; "" and 0 for what it has not. `link` is a link's number."""

    __slots__ = ("destination", "flags", "gateway", "ipv6", "link", "mtu", "scope", "source")

    def __init__(
        self,
        link: int,
        destination: str,
        gateway: str,
        source: str,
        *,
        scope: int,
        flags: int,
        mtu: int,
        ipv6: bool,
    ) -> None:
        self.link, self.destination, self.gateway, self.source = link, destination, gateway, source
        self.scope, self.flags, self.mtu, self.ipv6 = scope, flags, mtu, ipv6


# -- requests: (type, flags, body) -------------------------------------------------------------------------------

Request = tuple[int, int, bytes]


def encode(request: Request, sequence: int) -> bytes:
    """The whole message; every request asks for an answer."""
    kind, flags, body = request
    return _HEADER.pack(_HEADER.size + len(body), kind, flags | _REQUEST, sequence, 0) + body


def dump(kind: int) -> Request:
    """Everything of RTM_GETLINK, RTM_GETADDR or RTM_GETROUTE."""
    return kind, _DUMP, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)


def set_link(index: int, *, flags: int = 0, mask: int = 0, name: str = "", mtu: int = 0) -> Request:
    """Change the flags in `mask`, and what else is given."""
    attributes = [_LINK.pack(socket.AF_UNSPEC, 0, index, flags, mask)]
    if name:
        attributes.append(_attribute(_IFLA_IFNAME, name.encode() + b"\0"))
    if mtu:
        attributes.append(_attribute(_IFLA_MTU, struct.pack("=I", mtu)))
    return RTM_SETLINK, _ACK, b"".join(attributes)


def add_address(index: int, text: str, length: int) -> Request:
    """Nobody else on the network has it: it was the host interface's, which has asked already. So it is of use at
    once, without the second that duplicate detection takes."""
    family, packed = pack_address(text)
    if length > 8 * len(packed):
        raise ValueError(f"{text}/{length}: the prefix is longer than the address")
    flags = _IFA_F_NODAD if family == socket.AF_INET6 else 0
    body = _ADDRESS.pack(family, length, flags, 0, index)
    body += _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)
    if family == socket.AF_INET and length < 31:
        host_bits = (1 << (32 - length)) - 1
        body += _attribute(_IFA_BROADCAST, struct.pack("!I", struct.unpack("!I", packed)[0] | host_bits))
    return RTM_NEWADDR, _ACK | _CREATE | _REPLACE, body


def add_route(route: Route) -> Request:
    family = socket.AF_INET6 if route.ipv6 else socket.AF_INET
    target, _, length = route.destination.partition("/")
    body = _attribute(_RTA_OIF, struct.pack("=i", route.link))
    for kind, text in ((_RTA_DST, target), (_RTA_GATEWAY, route.gateway), (_RTA_PREFSRC, route.source)):
        if text:
            body += _attribute(kind, _of_family(family, text))
    if route.mtu:
        body += _attribute(_RTA_METRICS, _attribute(_RTAX_MTU, struct.pack("=I", route.mtu)))
    lengths = int(length) if length else (8 * len(_of_family(family, target)) if target else 0)
    header = _ROUTE.pack(
        *(family, lengths, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, route.scope, _RTN_UNICAST, route.flags)
    )
    return RTM_NEWROUTE, _ACK | _CREATE | _REPLACE, header + body


def add_neighbour(index: int, text: str, mac: str, state: int, flags: int) -> Request:
    family, packed = pack_address(text)
    body = _NEIGHBOUR.pack(family, index, state, flags, 0)
    body += _attribute(_NDA_DST, packed) + _attribute(_NDA_LLADDR, mac_bytes(mac))
    return RTM_NEWNEIGH, _ACK | _CREATE | _REPLACE, body


# -- answers -------------------------------------------------------------------------------------------------------


class Reply:
    """What one datagram says: `items` as (type, body); `done` when the answer is complete with it."""

    __slots__ = ("done", "items")

    def __init__(self) -> None:
        self.items: list[tuple[int, bytes]] = []
        self.done = False


def decode(data: bytes, sequence: int) -> Reply:
    """The messages that answer `sequence`. Raises OSError with the kernel's error number, ValueError for what is no
    netlink message."""
    reply = Reply()
    at = 0
    while at < len(data):
        if len(data) - at < _HEADER.size:
            raise ValueError("a netlink message ends in its header")
        length, kind, _, number, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            raise ValueError(f"a netlink message of {length} bytes with {len(data) - at} left")
        body = data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3
        if number != sequence:
            continue  # an event, or the rest of an answer nobody waited for
        if kind == _NLMSG_ERROR:
            (code,) = struct.unpack_from("=i", body)
            if code:
                raise OSError(-code, os.strerror(-code))
            reply.done = True
        elif kind == _NLMSG_DONE:
            reply.done = True
        else:
            reply.items.append((kind, body))
    return reply


def parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    found = _attributes(body[_LINK.size :])
    kind = _attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
    return Link(
        index,
        _text(found.get(_IFLA_IFNAME, b"")),
        found.get(_IFLA_ADDRESS, b"").hex(":"),
        int.from_bytes(found.get(_IFLA_MTU, b""), "little"),
        flags=flags,
        kind=_text(kind),
    )


def parse_address(body: bytes) -> Address:
    family, length, _, _, index = _ADDRESS.unpack_from(body)
    found = _attributes(body[_ADDRESS.size :])
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
    return Address(index, socket.inet_ntop(family, packed), length)


def parse_route(body: bytes) -> Route | None:
    """None for what is not a unicast route of the main table with one next hop."""
    family, length, _, _, table, _, scope, kind, flags = _ROUTE.unpack_from(body)
    found = _attributes(body[_ROUTE.size :])
    if table != _RT_TABLE_MAIN or kind != _RTN_UNICAST or _RTA_OIF not in found:
        return None
    texts = [_address_text(family, found, key) for key in (_RTA_DST, _RTA_GATEWAY, _RTA_PREFSRC)]
    mtu = _attributes(found.get(_RTA_METRICS, b"")).get(_RTAX_MTU, b"")
    return Route(
        int.from_bytes(found[_RTA_OIF], "little"),
        f"{texts[0]}/{length}" if texts[0] else "",
        texts[1],
        texts[2],
        scope=scope,
        flags=flags,
        mtu=int.from_bytes(mtu, "little"),
        ipv6=family == socket.AF_INET6,
    )


# -- parts -----------------------------------------------------------------------------------------------------------


def pack_address(text: str) -> tuple[int, bytes]:
    """Family and bytes; ValueError for what is no address."""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return family, _of_family(family, text)


def _of_family(family: int, text: str) -> bytes:
    try:
        return socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is no IPv{6 if family == socket.AF_INET6 else 4} address") from None


def mac_bytes(text: str) -> bytes:
    """ValueError for what is no MAC address."""
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 for part in parts):
        raise ValueError(f"{text!r} is no MAC address")
    return bytes.fromhex("".join(parts))


def _address_text(family: int, found: Mapping[int, bytes], key: int) -> str:
    return socket.inet_ntop(family, found[key]) if key in found else ""


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, kind) + payload + bytes(-length % 4)


def _attributes(data: bytes) -> dict[int, bytes]:
    """Type -> payload; of two of a type the last."""
    return dict(_each(data))


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            raise ValueError(f"a netlink attribute of {length} bytes with {len(data) - at} left")
        yield kind & 0x3FFF, data[at + 4 : at + length]  # without the flags "nested" and "network byte order"
        at += (length + 3) & ~3
