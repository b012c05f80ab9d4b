"""Decoder of the LZ4 legacy frame, which Debian's 6.1 kernels are packed with.

    frame: 02 21 4c 18, then blocks: u32 length (little endian), that many bytes
    block: sequences of  token (high 4 bits: literals, low 4 bits: match length - 4; 15 = more length bytes)
                         literals, u16 distance back, match copied from the output
           the last sequence ends after its literals

Source: lz4 doc/lz4_Frame_format.md ("Legacy frame"), doc/lz4_Block_format.md.
"""

from __future__ import annotations

import struct

MAGIC = b"\x02\x21\x4c\x18"


class BadLz4(ValueError):
    """The stream is damaged."""


def decode(data: bytes) -> bytes:
    """The unpacked bytes of a legacy frame (several concatenated ones are fine)."""
    out = bytearray()
    position = 0
    while position + 4 <= len(data):
        if data[position : position + 4] == MAGIC:
            position += 4
            continue
        (size,) = struct.unpack_from("<I", data, position)
        end = position + 4 + size
        if end > len(data):
            raise BadLz4(f"block of {size} bytes at {position} is cut off")
        try:
            _decode_block(data, position + 4, end, out)
        except IndexError:
            raise BadLz4(f"block at {position} is damaged") from None
        position = end
    return bytes(out)


def _decode_block(data: bytes, at: int, end: int, out: bytearray) -> None:
    start = len(out)
    while at < end:
        token = data[at]
        at += 1
        literals = token >> 4
        if literals == 15:
            more = 255
            while more == 255:
                more = data[at]
                at += 1
                literals += more
        if at + literals > end:
            raise IndexError
        out += data[at : at + literals]
        at += literals
        if at >= end:
            return
        distance = data[at] | data[at + 1] << 8
        at += 2
        length = token & 15
        if length == 15:
            more = 255
            while more == 255:
                more = data[at]
                at += 1
                length += more
        length += 4
        source = len(out) - distance
        if distance == 0 or source < start:
            raise IndexError
        if distance >= length:
            out += out[source : source + length]
        else:  # the match overlaps what it writes: the last `distance` bytes repeat
            pattern = bytes(out[source:])
            out += (pattern * (length // distance + 1))[:length]
