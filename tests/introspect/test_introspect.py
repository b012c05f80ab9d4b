"""The shim's own service on the whole shim on fakes, through its client."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from pathlib import Path

import pytest

from shim.config.model import Config
from shim.errors import DeadlineExceeded, Unavailable
from shim.hypervisor.api import Snapshot
from shim.introspect.client import ShimClient
from shim.introspect.service import IntrospectService
from shim.pb.kata_py import introspect as pb
from shim.ttrpc.server import Server
from shim.vm_size import Size
from tests.sandbox.stack import Stack, with_stack

CONFIG = Config().updated({"memory_mib": 512, "kernel_params": ["a=1"]}, "/etc/x.toml")


async def ask(shim: Stack, *, streams: bool = False) -> pb.SandboxResponse:
    path = str(shim.directory / "shim.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.setblocking(False)
        server = Server([IntrospectService(shim.sandbox, lambda: CONFIG)], shim.log)
        await server.serve(listener)
        try:
            client = await ShimClient.connect(f"unix://{path}", 2)
            try:
                return await client.sandbox(streams=streams)
            finally:
                await client.aclose()
        finally:
            await server.aclose()
            os.unlink(path)


@with_stack
async def test_a_sandbox_is_new_then_up_then_dead(shim: Stack) -> None:
    assert (await ask(shim)).state == "new"
    await shim.run()
    found = await ask(shim)
    assert (found.state, found.origin, found.reason) == ("up", "boot", "") and 0 < found.up_s < 5
    shim.hypervisor.die(-9)
    await shim.wait()
    found = await ask(shim)
    assert found.state == "dead" and "QEMU was killed by SIGKILL" in found.reason


@with_stack
async def test_a_vm_that_was_restored_says_so(shim: Stack) -> None:
    shim.snapshot = Snapshot(Path("/m"), Path("/s"))
    await shim.run()
    assert (await ask(shim)).origin == "template"


@with_stack
async def test_a_vm_has_the_size_that_it_has_grown_to(shim: Stack) -> None:
    shim.least = Size(512, 3)
    await shim.run()
    found = await ask(shim)
    assert (found.memory_mib, found.vcpus) == (512, 3)


@with_stack
async def test_settings_have_their_origins(shim: Stack) -> None:
    found = await ask(shim)
    settings = {item.key: (item.value, item.origin) for item in found.settings}
    assert settings["memory_mib"] == ("512", "/etc/x.toml")
    assert settings["kernel_params"] == ('["a=1"]', "/etc/x.toml")
    assert settings["vcpus"] == ("1", "") and set(settings) == set(Config().values())
    assert (found.memory_mib, found.vcpus) == (512, 1)


@with_stack
async def test_processes_have_states_and_their_streams_counters(shim: Stack) -> None:
    await shim.run(**shim.fifos("stdout"))
    await shim.exec("e1")
    (container,) = (await ask(shim)).containers
    assert container.id == "c1" and container.bundle == str(shim.directory / "bundles/c1")
    assert [(item.exec_id, item.state) for item in container.processes] == [
        ("", "running"),
        ("e1", "created"),
    ]
    assert not any(item.streams for item in container.processes), "only when asked for"
    (stream,) = shim.device.streams.values()
    stream.moved = 5
    ((process, _),) = [item.processes for item in (await ask(shim, streams=True)).containers]
    (counted,) = process.streams
    assert (counted.name, counted.from_guest_bytes, counted.to_guest_bytes, counted.stalls) == (
        "stdout",
        5,
        0,
        0,
    )


def listening(path: Path, backlog: int) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    return listener


def test_a_shim_that_hangs_is_given_up_in_time(tmp_path: Path) -> None:
    async def run() -> None:
        client = await ShimClient.connect(str(tmp_path / "s"), 0.1)
        with pytest.raises(DeadlineExceeded):
            await client.sandbox()
        with pytest.raises(DeadlineExceeded):
            await client.usage("c1")
        await client.aclose()

    with listening(tmp_path / "s", 5):
        began = time.monotonic()
        asyncio.run(run())
        assert time.monotonic() - began < 2


def test_a_shim_that_does_not_accept_is_given_up_in_time(tmp_path: Path) -> None:
    async def run() -> None:
        client = await ShimClient.connect(str(tmp_path / "s"), 0.1)
        try:
            await client.sandbox()
        finally:
            await client.aclose()

    with listening(tmp_path / "s", 0), socket.socket(socket.AF_UNIX) as first:
        first.connect(str(tmp_path / "s"))
        with pytest.raises((DeadlineExceeded, Unavailable)):
            asyncio.run(run())


def test_a_dead_shim_is_unavailable(tmp_path: Path) -> None:
    listening(tmp_path / "s", 5).close()
    for name in ("s", "none"):
        with pytest.raises(Unavailable, match=name):
            asyncio.run(ShimClient.connect(str(tmp_path / name), 1))
