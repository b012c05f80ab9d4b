"""Every TCP connection to a namespace's loopback addresses, whatever its port, at one listening socket.

A program of type SK_LOOKUP at the namespace is asked which socket a new connection belongs to. Ours names the
listener for 127.0.0.0/8 and ::1. The accepted socket has the address that was dialled as its own, no packet is
rewritten or tracked, and no rule stays behind: the attachment is a descriptor, gone with its last holder.
A REDIRECT by nftables would do it with a package more, connection tracking, and rules to remove.

Sources: Linux Documentation/bpf/prog_sk_lookup.rst; <linux/bpf.h> for numbers and struct bpf_sk_lookup.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct

# Numbers of bpf(2) on x86-64 and arm64.
_SYSCALL = {"x86_64": 321, "aarch64": 280}
_MAP_CREATE, _MAP_UPDATE_ELEM, _PROG_LOAD, _LINK_CREATE = 0, 2, 5, 28
_MAP_TYPE_SOCKMAP, _PROG_TYPE_SK_LOOKUP, _ATTACH_SK_LOOKUP = 15, 30, 36
_ATTR_SIZE = 128
_MAP_LOOKUP_ELEM, _SK_RELEASE, _SK_ASSIGN = 1, 86, 124  # helper functions
_BACKLOG = 128

# Opcodes.
_LOAD, _STORE_IMMEDIATE, _LOAD_MAP = 0x61, 0x62, 0x18
_MOVE, _SET, _ADD, _AND, _OR = 0xBF, 0xB7, 0x07, 0x57, 0x4F
_JUMP, _IF_EQUAL, _IF_NOT_EQUAL, _CALL, _EXIT = 0x05, 0x15, 0x55, 0x85, 0x95
# struct bpf_sk_lookup
_FAMILY, _PROTOCOL, _LOCAL_IP4, _LOCAL_IP6 = 8, 12, 40, 44


def capture(netns_fd: int) -> tuple[socket.socket, int]:
    """The listening socket (of the calling process's namespace, which must be `netns_fd`'s) and the descriptor that
    keeps connections coming to it. OSError where the kernel does not know this or does not allow it."""
    listener = _listener()
    fds: list[int] = []
    try:
        sockets = _bpf(_MAP_CREATE, struct.pack("<4I", _MAP_TYPE_SOCKMAP, 4, 8, 1))
        fds.append(sockets)
        key, value = _buffer(bytes(4)), _buffer(struct.pack("<Q", listener.fileno()))
        _bpf(_MAP_UPDATE_ELEM, struct.pack("<I4x3Q", sockets, _address(key), _address(value), 0))
        fds.append(_load(program(sockets)))
        return listener, _bpf(_LINK_CREATE, struct.pack("<4I", fds[-1], netns_fd, _ATTACH_SK_LOOKUP, 0))
    except BaseException:
        listener.close()
        raise
    finally:
        for fd in fds:  # the link holds what it needs
            os.close(fd)


def program(sockets: int) -> bytes:
    """The instructions; `sockets` is the descriptor of a map whose only entry is the listener."""
    # (opcode, destination register, source register, offset or label, immediate)
    lines: list[str | tuple[int, int, int, int | str, int]] = [
        (_MOVE, 6, 1, 0, 0),  # r6 = context
        (_LOAD, 2, 6, _PROTOCOL, 0),
        (_IF_NOT_EQUAL, 2, 0, "pass", socket.IPPROTO_TCP),
        (_LOAD, 2, 6, _FAMILY, 0),
        (_IF_NOT_EQUAL, 2, 0, "ipv6", socket.AF_INET),
        (_LOAD, 2, 6, _LOCAL_IP4, 0),  # in network order, on machines that are all little-endian
        (_AND, 2, 0, 0, 0xFF),
        (_IF_NOT_EQUAL, 2, 0, "pass", 127),
        (_JUMP, 0, 0, "assign", 0),
        "ipv6",
        (_LOAD, 2, 6, _LOCAL_IP6, 0),
        (_LOAD, 3, 6, _LOCAL_IP6 + 4, 0),
        (_OR, 2, 3, 0, 0),
        (_LOAD, 3, 6, _LOCAL_IP6 + 8, 0),
        (_OR, 2, 3, 0, 0),
        (_IF_NOT_EQUAL, 2, 0, "pass", 0),
        (_LOAD, 2, 6, _LOCAL_IP6 + 12, 0),
        (_IF_NOT_EQUAL, 2, 0, "pass", 1 << 24),
        "assign",
        (_STORE_IMMEDIATE, 10, 0, -4, 0),  # key 0, on the stack
        (_LOAD_MAP, 1, 1, 0, sockets),
        (0, 0, 0, 0, 0),  # the upper half of the instruction before
        (_MOVE, 2, 10, 0, 0),
        (_ADD, 2, 0, 0, -4),
        (_CALL, 0, 0, 0, _MAP_LOOKUP_ELEM),
        (_IF_EQUAL, 0, 0, "pass", 0),
        (_MOVE, 7, 0, 0, 0),  # r7 = listener
        (_MOVE, 1, 6, 0, 0),
        (_MOVE, 2, 7, 0, 0),
        (_SET, 3, 0, 0, 0),
        (_CALL, 0, 0, 0, _SK_ASSIGN),
        (_MOVE, 1, 7, 0, 0),
        (_CALL, 0, 0, 0, _SK_RELEASE),
        "pass",
        (_SET, 0, 0, 0, 1),  # SK_PASS: the assigned socket, or the one that is found without us
        (_EXIT, 0, 0, 0, 0),
    ]
    labels: dict[str, int] = {}
    instructions: list[tuple[int, int, int, int | str, int]] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(instructions)
        else:
            instructions.append(line)
    return b"".join(
        struct.pack("<BBhi", code, to | source << 4, labels[at] - n - 1 if isinstance(at, str) else at, value)
        for n, (code, to, source, at, value) in enumerate(instructions)
    )


def _listener() -> socket.socket:
    """For both families where the kernel has both."""
    try:
        listener = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    except OSError:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.listen(_BACKLOG)  # bound to no address and to some port: the program alone decides what it gets
    listener.setblocking(False)
    return listener


def _load(code: bytes) -> int:
    instructions, licence = _buffer(code), _buffer(b"Apache-2.0\0")
    attributes = struct.pack(
        "<2I2Q2IQ2I16s2I",
        *(_PROG_TYPE_SK_LOOKUP, len(code) // 8, _address(instructions), _address(licence)),
        *(0, 0, 0, 0, 0),  # no log of the verifier
        *(b"kata_py", 0, _ATTACH_SK_LOOKUP),
    )
    return _bpf(_PROG_LOAD, attributes)


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def _bpf(command: int, attributes: bytes) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(
        _SYSCALL[os.uname().machine], command, ctypes.create_string_buffer(attributes, _ATTR_SIZE), _ATTR_SIZE
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf command {command}: {os.strerror(code)}")
    return result
