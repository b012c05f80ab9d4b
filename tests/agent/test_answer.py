"""Answers of a hostile guest cost the shim little."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from shim.agent.answer import MAX_ANSWER, MAX_MESSAGES, parse
from shim.agent.api import ProcessIds
from shim.agent.kata import KataAgent
from shim.errors import InvalidArgument, ResourceExhausted, ShimError
from shim.pb import grpc
from shim.pb.kata_py import guest
from shim.ttrpc import memory
from shim.ttrpc.channel import Channel
from shim.ttrpc.server import Server
from shim.ttrpc.service import Method, Service, Stream


def test_what_an_honest_guest_says_is_parsed_as_ever() -> None:
    answer = grpc.StatsContainerResponse(
        cgroup_stats=grpc.CgroupStats(
            memory_stats=grpc.MemoryStats(stats={f"k{n}": n for n in range(1000)}),
            blkio_stats=grpc.BlkioStats(io_serviced_recursive=[grpc.BlkioStatsEntry(op="x")] * 1000),
            hugetlb_stats={"2MB": grpc.HugetlbStats(usage=1)},
        ),
        network_stats=[grpc.NetworkStats(name="eth0", rx_bytes=1 << 63)],
    )
    assert parse(grpc.StatsContainerResponse, bytes(answer)) == answer


def field(number: int, content: bytes) -> bytes:
    length = bytes(((len(content) >> shift) & 0x7F) | 0x80 for shift in (0, 7)) + bytes([len(content) >> 14])
    return bytes([number << 3 | 2]) + length + content


HOSTILE = {
    "many": b"\x12\x00" * (MAX_ANSWER // 2),
    "one of many parts": b"\x0a\x00" * (MAX_ANSWER // 2),
    "deep": field(1, field(4, b"\x0a\x00" * (MAX_ANSWER // 4))),
    "just too many": b"\x12\x00" * MAX_MESSAGES,
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_messages_beyond_number_are_refused_before_they_cost(data: bytes) -> None:
    began = time.process_time()
    with pytest.raises(ResourceExhausted):
        parse(grpc.StatsContainerResponse, data)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("data", [b"\x12\x05ab", b"\x12", b"\xff" * 11, b"\x0a\x01\x0a", b"\x0b"])
def test_what_is_no_message_is_told_so(data: bytes) -> None:
    with pytest.raises(InvalidArgument):
        parse(grpc.StatsContainerResponse, data)


def raw(answer: bytes) -> Method:
    async def run(stream: Stream) -> None:
        await stream.recv_message()
        await stream.send_message(answer)

    return Method(run, bytes, bytes)


def test_an_agent_that_answers_too_much_fails_that_call_alone() -> None:
    many = bytes(guest.ListProcessesResponse([guest.Process(pid=1)] * MAX_MESSAGES))
    methods: dict[str, Any] = {
        "StatsContainer": raw(bytes(4 << 20)[:-64]),
        "ReadStdout": raw(bytes(grpc.ReadStreamResponse(b"x" * (256 << 10)))),
    }
    services = [
        Service("grpc.AgentService", methods),
        Service("kata_py.guest.Guest", {"ListProcesses": raw(many)}),
    ]

    async def main() -> None:
        server = Server(services)
        channel = Channel(MAX_ANSWER)
        memory.pair(channel.link(), server.link())
        agent = KataAgent(channel, 5.0)
        with pytest.raises(ResourceExhausted, match=f"maximum message size of {MAX_ANSWER}"):
            await agent.stats_container("c")
        with pytest.raises(ShimError, match="more than 4096 messages"):
            await agent.list_processes("c")
        assert len(await agent.read_stdout(ProcessIds("c"), 256 << 10)) == 256 << 10
        await agent.aclose()
        await server.aclose()

    asyncio.run(main())
