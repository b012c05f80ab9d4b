"""The ELF kernel inside a bzImage.

QEMU starts an ELF kernel that has a PVH note directly in 32-bit mode: no decompressor runs in the guest,
which under TCG saves 0.2 s (LZ4) to 0.9 s (zstd).

    setup header, file offsets: 0x1f1 setup_sects (0 means 4), 0x202 "HdrS", 0x206 protocol version,
                                0x248 payload_offset, 0x24c payload_length (from the protected-mode code on)
    payload: compressed vmlinux, then its unpacked size as u32

Source: Linux Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess

from . import lz4


class BadKernel(ValueError):
    """The file is no bzImage this module can unpack."""


def extract(image: bytes) -> bytes:
    """The vmlinux of a bzImage (boot protocol 2.08 or later)."""
    if image[0x202:0x206] != b"HdrS" or struct.unpack_from("<H", image, 0x206)[0] < 0x208:
        raise BadKernel("not a bzImage of boot protocol 2.08 or later")
    base = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[base + offset : base + offset + length]
    if len(payload) != length or length < 8:
        raise BadKernel("the bzImage is cut off")
    (size,) = struct.unpack_from("<I", payload, length - 4)
    kernel = _unpack(payload[:-4])
    if len(kernel) != size or kernel[:4] != b"\x7fELF":
        raise BadKernel(f"the payload unpacks to {len(kernel)} bytes, not to an ELF file of {size}")
    return kernel


def _unpack(payload: bytes) -> bytes:
    if payload[:4] == lz4.MAGIC:
        return lz4.decode(payload)
    if payload[:2] == b"\x1f\x8b":
        return gzip.decompress(payload)
    if payload[:6] == b"\xfd7zXZ\0":
        return lzma.LZMADecompressor().decompress(payload)
    if payload[:4] == b"\x28\xb5\x2f\xfd":
        program = shutil.which("zstd")
        if program is None:
            raise BadKernel("this kernel is packed with zstd: install the package zstd")
        return subprocess.run([program, "-dcq"], input=payload, stdout=subprocess.PIPE, check=True).stdout
    raise BadKernel(f"unknown compression, magic {payload[:6].hex()}")
