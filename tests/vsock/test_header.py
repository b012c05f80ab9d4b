from __future__ import annotations

from shim.vsock import header


def test_both_readings_of_a_header_see_the_same_fields() -> None:
    raw = header.FIELDS.pack(3, 2, 1027, 1 << 30, 4096, 1, header.OP_RW, 3, 262144, 77)
    assert len(raw) == header.LENGTH == header.PACKED.size
    cids, ports, length, kind, flags, alloc, fwd = header.PACKED.unpack(raw)
    assert cids == header.cids(3, 2)
    assert ports == header.ports(1027, 1 << 30)
    assert (length, kind, flags, alloc, fwd) == (4096, header.RW, 3, 262144, 77)


def test_a_packet_of_another_type_is_no_data() -> None:
    assert header.kind(header.OP_RW, 2) != header.RW
