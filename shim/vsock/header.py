"""The virtio-vsock packet header: 44 bytes, little endian, in front of every packet's payload.

     0        8        16         20         24    28     30   32      36          40        44
     | src_cid | dst_cid | src_port | dst_port | len | type | op | flags | buf_alloc | fwd_cnt |

Whoever sends a packet tells in each one how large its receive buffer is (`buf_alloc`) and how many
payload bytes of this connection its reader has taken so far, modulo 2^32 (`fwd_cnt`). The other side may
have at most `buf_alloc - (bytes it sent - fwd_cnt)` more bytes under way: that is the whole flow control.

`PACKED` reads the same bytes in fewer pieces, as the packet loops need them: both cids as one string that is
compared with the only right one, both ports as one integer that is the key of the connection table, and
type and op as one integer.

Source: VIRTIO 1.2, 5.10 "Socket Device".
"""

from __future__ import annotations

from struct import Struct

HOST_CID = 2
TYPE_STREAM = 1

OP_REQUEST = 1
OP_RESPONSE = 2
OP_RST = 3
OP_SHUTDOWN = 4
OP_RW = 5
OP_CREDIT_UPDATE = 6
OP_CREDIT_REQUEST = 7

# flags of OP_SHUTDOWN: what the sender of the packet will not do any more
SHUT_RCV = 1
SHUT_SEND = 2
SHUT_BOTH = 3

LENGTH = 44
# VIRTIO_VSOCK_MAX_PKT_BUF_SIZE of Linux: no driver sends more in one packet
MAX_PAYLOAD = 65536
MASK32 = 0xFFFFFFFF

FIELDS = Struct("<QQIIIHHIII")
# cids, ports (source in the low half), len, type | op << 16, flags, buf_alloc, fwd_cnt
PACKED = Struct("<16sQIIIII")


def kind(op: int, packet_type: int = TYPE_STREAM) -> int:
    """Type and op as `PACKED` has them."""
    return packet_type | op << 16


RW = kind(OP_RW)


def cids(source: int, destination: int) -> bytes:
    """Both cids as `PACKED` has them."""
    return source.to_bytes(8, "little") + destination.to_bytes(8, "little")


def ports(source: int, destination: int) -> int:
    """Both ports as `PACKED` has them."""
    return source | destination << 32
