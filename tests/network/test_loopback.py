"""The program at the namespace: its instructions follow from the label table. integration/ has it at work."""

from __future__ import annotations

import struct

from shim.network.loopback import program

MAP_FD = 77


def instructions() -> list[tuple[int, int, int, int]]:
    code = program(MAP_FD)
    return [struct.unpack("<BBhi", code[at : at + 8]) for at in range(0, len(code), 8)]


def test_every_jump_lands_on_an_instruction_and_the_last_one_is_the_exit() -> None:
    lines = instructions()
    jumps = {0x05, 0x15, 0x55}
    targets = [at + 1 + offset for at, (code, _, offset, _) in enumerate(lines) if code in jumps]
    assert targets and all(0 < target < len(lines) for target in targets)
    assert lines[-1][0] == 0x95
    assert [code for code, *_ in lines].count(0x95) == 1


def test_the_map_is_named_by_its_descriptor_in_a_double_instruction() -> None:
    lines = instructions()
    (at,) = [at for at, (code, *_) in enumerate(lines) if code == 0x18]
    assert lines[at] == (0x18, 0x11, 0, MAP_FD)
    assert lines[at + 1] == (0, 0, 0, 0)


def run(family: int, protocol: int, address: bytes) -> bool:
    """A processor for as much of the instruction set as the program uses: whether it assigns the listener."""
    context = bytearray(72)
    struct.pack_into("<II", context, 8, family, protocol)
    at = 40 if family == 2 else 44
    context[at : at + len(address)] = address
    registers: dict[int, int] = {1: 0, 10: 0}
    lines, at, assigned = instructions(), 0, False
    while True:
        code, which, offset, value = lines[at]
        to, source = which & 15, which >> 4
        at += 1
        if code == 0x61:
            registers[to] = struct.unpack_from("<I", context, registers[source] + offset)[0]
        elif code == 0xBF:
            registers[to] = registers[source]
        elif code == 0xB7:
            registers[to] = value
        elif code == 0x07:
            registers[to] += value
        elif code == 0x57:
            registers[to] &= value
        elif code == 0x4F:
            registers[to] |= registers[source]
        elif code == 0x18:
            registers[to], at = value, at + 1
        elif code == 0x85:
            assigned = assigned or value == 124
            registers[0] = 1 if value == 1 else 0
        elif code == 0x05 or ((code == 0x15) == (registers.get(to) == value) and code in (0x15, 0x55)):
            at += offset
        elif code == 0x95:
            assert registers[0] == 1
            return assigned


def test_tcp_to_a_loopback_address_is_ours_and_nothing_else_is() -> None:
    assert run(2, 6, bytes([127, 0, 0, 1]))
    assert run(2, 6, bytes([127, 9, 8, 7]))
    assert run(10, 6, bytes(15) + b"\1")
    assert not run(2, 17, bytes([127, 0, 0, 1]))
    assert not run(2, 6, bytes([10, 0, 0, 127]))
    assert not run(10, 6, bytes(15) + b"\2")
    assert not run(10, 6, bytes([0xFD]) + bytes(14) + b"\1")
    assert not run(10, 6, bytes(7) + b"\1" + bytes(7) + b"\1")
