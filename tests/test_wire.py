"""shim.wire against the encoding's rules, and against betterproto in both directions."""

import contextlib
import random
import struct

import pytest

import shim.pb.containerd.runtime.bootstrap.v1 as bootstrap
import shim.pb.grpc as agent
from shim import wire
from shim.bootstrap.schema import MESSAGES as BOOTSTRAP
from shim.errors import InvalidArgument
from shim.guest.schema import MESSAGES as GUEST

SCALARS = [
    "double",
    "float",
    "int32",
    "int64",
    "uint32",
    "uint64",
    "sint32",
    "sint64",
    "fixed32",
    "fixed64",
    "sfixed32",
    "sfixed64",
    "bool",
]
TABLE = {
    "t.M": {
        **{number: (kind, kind) for number, kind in enumerate([*SCALARS, "string", "bytes", "enum"], 1)},
        20: ("self", "t.M"),
        21: ("selves", "t.M", "repeated"),
        22: ("numbers", "int32", "repeated"),
        23: ("words", "string", "repeated"),
        24: ("maybe", "uint32", "optional"),
        25: ("by_name", "t.M", "map", "string"),
        26: ("by_number", "string", "map", "int32"),
        27: ("halves", "fixed32", "repeated"),
    },
    "t.Empty": {},
}
VALUES = [
    ("int32", 0, b""),
    ("int32", 1, b"\x18\x01"),
    ("int32", 300, b"\x18\xac\x02"),
    ("int32", -1, b"\x18" + b"\xff" * 9 + b"\x01"),
    ("int32", -(1 << 31), b"\x18\x80\x80\x80\x80\xf8" + b"\xff" * 4 + b"\x01"),
    ("int64", -(1 << 63), b"\x20" + b"\x80" * 9 + b"\x01"),
    ("int64", (1 << 63) - 1, b"\x20" + b"\xff" * 8 + b"\x7f"),
    ("uint32", (1 << 32) - 1, b"\x28\xff\xff\xff\xff\x0f"),
    ("uint64", (1 << 64) - 1, b"\x30" + b"\xff" * 9 + b"\x01"),
    ("sint32", -1, b"\x38\x01"),
    ("sint32", -(1 << 31), b"\x38\xff\xff\xff\xff\x0f"),
    ("sint64", 1, b"\x40\x02"),
    ("sint64", -(1 << 63), b"\x40" + b"\xff" * 9 + b"\x01"),
    ("fixed32", 1, b"\x4d\x01\0\0\0"),
    ("fixed64", 1, b"\x51\x01\0\0\0\0\0\0\0"),
    ("sfixed32", -2, b"\x5d\xfe\xff\xff\xff"),
    ("sfixed64", -2, b"\x61\xfe" + b"\xff" * 7),
    ("double", 1.5, b"\x09" + struct.pack("<d", 1.5)),
    ("float", 1.5, b"\x15" + struct.pack("<f", 1.5)),
    ("bool", True, b"\x68\x01"),
    ("string", "é", b"\x72\x02\xc3\xa9"),
    ("bytes", b"\xff\0", b"\x7a\x02\xff\0"),
    ("enum", -8, b"\x80\x01\xf8" + b"\xff" * 8 + b"\x01"),
    ("self", {}, b"\xa2\x01\x00"),
    ("self", {"self": {"bool": True}}, b"\xa2\x01\x05\xa2\x01\x02\x68\x01"),
    ("selves", [{}, {"int32": 1}], b"\xaa\x01\x00\xaa\x01\x02\x18\x01"),
    ("numbers", [1, -1, 0], b"\xb2\x01\x0c\x01" + b"\xff" * 9 + b"\x01\x00"),
    ("words", ["", "a"], b"\xba\x01\x00\xba\x01\x01a"),
    ("maybe", 0, b"\xc0\x01\x00"),
    ("by_name", {"a": {"bool": True}}, b"\xca\x01\x07\n\x01a\x12\x02\x68\x01"),
    ("by_number", {-1: "x"}, b"\xd2\x01\x0e\x08" + b"\xff" * 9 + b"\x01\x12\x01x"),
    ("halves", [1, 2], b"\xda\x01\x08\x01\0\0\0\x02\0\0\0"),
]


@pytest.mark.parametrize(("name", "value", "data"), VALUES, ids=lambda value: repr(value)[:20])
def test_a_value_has_exactly_these_bytes_and_comes_back(name, value, data):
    assert wire.encode(TABLE, "t.M", {name: value}) == data
    assert wire.decode(TABLE, "t.M", data) == ({name: value} if data else {})


def test_none_and_default_values_are_left_out():
    fields = {
        "int32": 0,
        "string": "",
        "bytes": b"",
        "bool": False,
        "numbers": [],
        "maybe": None,
        "self": None,
    }
    assert wire.encode(TABLE, "t.M", fields) == b""


def test_fields_are_written_in_the_order_of_their_numbers():
    assert wire.encode(TABLE, "t.M", {"bool": True, "int32": 1}) == b"\x18\x01\x68\x01"


def test_repeated_numbers_are_read_packed_unpacked_and_mixed():
    assert wire.decode(TABLE, "t.M", b"\xb0\x01\x05\xb2\x01\x02\x06\x07\xb0\x01\x08") == {
        "numbers": [5, 6, 7, 8]
    }
    assert wire.decode(TABLE, "t.M", b"\xdd\x01\x09\0\0\0") == {"halves": [9]}


def test_the_last_of_several_scalars_counts_and_messages_are_merged():
    assert wire.decode(TABLE, "t.M", b"\x18\x01\x18\x02") == {"int32": 2}
    merged = wire.decode(TABLE, "t.M", b"\xa2\x01\x02\x18\x01\xa2\x01\x02\x68\x01")
    assert merged == {"self": {"int32": 1, "bool": True}}


def test_a_map_entry_may_lack_its_key_or_its_value():
    assert wire.decode(TABLE, "t.M", b"\xd2\x01\x00") == {"by_number": {0: ""}}
    assert wire.decode(TABLE, "t.M", b"\xca\x01\x00") == {"by_name": {"": {}}}


def test_the_last_of_equal_map_keys_counts():
    data = b"\xd2\x01\x05\x08\x01\x12\x01a" + b"\xd2\x01\x05\x08\x01\x12\x01b"
    assert wire.decode(TABLE, "t.M", data) == {"by_number": {1: "b"}}


@pytest.mark.parametrize(
    "unknown",
    [b"\xf8\x01\x96\x01", b"\xf9\x01" + bytes(8), b"\xfa\x01\x03abc", b"\xfd\x01" + bytes(4), b"\x1a\x01a"],
    ids=["varint", "64 bits", "bytes", "32 bits", "known number of another wire type"],
)
def test_unknown_fields_are_skipped(unknown):
    assert wire.decode(TABLE, "t.M", unknown + b"\x68\x01" + unknown) == {"bool": True}


def test_32_bit_numbers_take_the_lower_half_of_a_longer_varint():
    assert wire.decode(TABLE, "t.M", b"\x28\x81\x80\x80\x80\x10") == {"uint32": 1}


@pytest.mark.parametrize(
    "data",
    [
        b"\x18",
        b"\x18\x80",
        b"\x18" + b"\xff" * 10 + b"\x01",
        b"\x18" + b"\xff" * 9 + b"\x02",
        b"\x72\x05abc",
        b"\x72\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x72\x01\xff",
        b"\x4d\0\0\0",
        b"\x51" + bytes(7),
        b"\x00\x01",
        b"\x1b",
        b"\x1c",
        b"\x1e",
        b"\x1f",
        b"\xf9\x01\0",
        b"\xfa\x01\x02a",
        b"\xb2\x01\x01\x80",
        b"\xda\x01\x03\0\0\0",
        b"\x80\x80\x80\x80\x80\x01\x00",
        b"\xca\x01\x02\x12\x05",
    ],
    ids=lambda data: data.hex()[:24],
)
def test_a_malformed_message_is_an_invalid_argument(data):
    with pytest.raises(InvalidArgument):
        wire.decode(TABLE, "t.M", data)


def test_every_truncation_of_a_message_is_refused_or_shorter_but_never_another_error():
    fields = {
        "self": {"selves": [{"int64": -5, "double": 2.5}], "by_name": {"k": {"string": "v"}}},
        "words": ["a"],
    }
    data = wire.encode(TABLE, "t.M", fields)
    assert wire.decode(TABLE, "t.M", data) == fields
    for end in range(len(data)):
        with contextlib.suppress(InvalidArgument):
            assert wire.decode(TABLE, "t.M", data[:end]) != fields


def test_random_bytes_are_refused_or_decoded_but_never_another_error():
    dice = random.Random(1)
    for _ in range(5000):
        data = dice.randbytes(dice.randrange(1, 60))
        with contextlib.suppress(InvalidArgument):
            wire.decode(GUEST, "grpc.CreateContainerRequest", data)


def test_deep_nesting_is_an_invalid_argument():
    data = b""
    for _ in range(5000):
        head = bytearray(b"\xa2\x01")
        length = len(data)
        while length > 0x7F:
            head.append(length & 0x7F | 0x80)
            length >>= 7
        head.append(length)
        data = bytes(head) + data
    with pytest.raises(InvalidArgument, match="nested"):
        wire.decode(TABLE, "t.M", data)


@pytest.mark.parametrize(
    "fields",
    [
        {"int32": 1 << 31},
        {"uint32": -1},
        {"uint64": 1 << 64},
        {"int32": "1"},
        {"int32": 1.5},
        {"fixed32": -1},
        {"string": b"x"},
        {"string": "\udc80"},
        {"bytes": "x"},
        {"bool": 2},
        {"numbers": 5},
        {"numbers": [1, "a"]},
        {"self": {"nothing": 1}},
        {"by_number": {"a": "b"}},
        {"nothing": 1},
    ],
    ids=repr,
)
def test_a_value_that_does_not_fit_is_an_invalid_argument_that_names_the_field(fields):
    with pytest.raises(InvalidArgument, match=rf"t\.M.*{next(iter(fields))}"):
        wire.encode(TABLE, "t.M", fields)


# Against betterproto. It leaves empty keys and values out of map entries, so bytes are compared without such.

PROCESS = agent.Process(
    terminal=True,
    user=agent.User(uid=1, additional_gids=[0, 5, 70000]),
    args=["sh", "-c", ""],
    rlimits=[agent.PosixRlimit(type="RLIMIT_NOFILE", hard=(1 << 64) - 1, soft=1024)],
    oom_score_adj=-999,
)
SPEC = agent.Spec(
    version="1.0.2",
    process=PROCESS,
    root=agent.Root(path="/r", readonly=True),
    mounts=[agent.Mount(destination="/proc", type="proc", options=["ro", "nosuid"])],
    annotations={"k": "v"},
    linux=agent.Linux(
        resources=agent.LinuxResources(memory=agent.LinuxMemory(limit=-1)),
        devices=[agent.LinuxDevice(path="/dev/null", major=1, minor=3, file_mode=0o666)],
        seccomp=agent.LinuxSeccomp(syscalls=[agent.LinuxSyscall(names=["a"], errnoret=0)]),
    ),
)
MESSAGES = [
    (GUEST, "grpc.Spec", SPEC),
    (
        GUEST,
        "grpc.CreateContainerRequest",
        agent.CreateContainerRequest(container_id="c", oci=SPEC, stdin_port=5),
    ),
    (GUEST, "grpc.WaitProcessResponse", agent.WaitProcessResponse(status=-1)),
    (GUEST, "grpc.AddSwapRequest", agent.AddSwapRequest(pci_path=[1, 300])),
    (
        GUEST,
        "grpc.StatsContainerResponse",
        agent.StatsContainerResponse(
            cgroup_stats=agent.CgroupStats(
                memory_stats=agent.MemoryStats(stats={"rss": 1 << 40}),
                hugetlb_stats={"2MB": agent.HugetlbStats(usage=3)},
            )
        ),
    ),
    (GUEST, "grpc.MemAgentMemcgConfig", agent.MemAgentMemcgConfig(disabled=False, period_secs=0)),
    (
        BOOTSTRAP,
        "containerd.runtime.bootstrap.v1.BootstrapParams",
        bootstrap.BootstrapParams(instance_id="a", log_level=bootstrap.LogLevel.DEBUG, socket_dir="/run/s"),
    ),
]


@pytest.mark.parametrize(("schema", "name", "message"), MESSAGES, ids=[name for _, name, _ in MESSAGES])
def test_betterproto_and_the_tables_agree_in_both_directions(schema, name, message):
    data = bytes(message)
    fields = wire.decode(schema, name, data)
    assert wire.encode(schema, name, fields) == data
    assert type(message).FromString(wire.encode(schema, name, fields)) == message


def test_fields_have_the_names_of_the_proto_files():
    fields = wire.decode(GUEST, "grpc.Spec", bytes(SPEC))
    assert fields["Process"]["User"] == {"UID": 1, "AdditionalGids": [0, 5, 70000]}
    assert fields["Process"]["OOMScoreAdj"] == -999
    assert fields["Linux"]["Seccomp"]["Syscalls"] == [{"Names": ["a"], "errnoret": 0}]
