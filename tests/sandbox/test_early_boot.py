"""The boot that begins before the first Create."""

from __future__ import annotations

import asyncio
import json

import pytest

from shim.errors import Internal
from tests.sandbox.stack import Stack, until, with_stack


def spec_of(shim: Stack) -> dict[str, object]:
    return json.loads((shim.bundle("c1", hostname="early") / "config.json").read_text())


@with_stack
async def test_it_returns_when_the_guest_runs_and_create_takes_what_it_made(shim: Stack) -> None:
    shim.agent.hold["connect"] = asyncio.Event()
    await shim.sandbox.boot_early(spec_of(shim))
    assert shim.hypervisor.calls[-1] == "resume"
    assert not shim.sandbox.used
    create = asyncio.create_task(shim.create(spec={"hostname": "early"}))
    await until(lambda: shim.sandbox.used)
    shim.agent.hold["connect"].set()
    await create
    assert shim.hypervisor.calls.count("start") == 1
    assert shim.agent.hostname == "early"


@with_stack
async def test_its_failure_is_the_answer_to_create(shim: Stack) -> None:
    shim.hypervisor.fail["start"] = Internal("no such kernel")
    await shim.sandbox.boot_early(spec_of(shim))
    with pytest.raises(Internal, match="no such kernel"):
        await shim.create()


@with_stack
async def test_a_sandbox_that_nobody_uses_can_be_ended(shim: Stack) -> None:
    shim.agent.hold["connect"] = asyncio.Event()
    await shim.sandbox.boot_early(spec_of(shim))
    await shim.sandbox.aclose()
    assert shim.hypervisor.calls[-1] == "stop"


@with_stack
async def test_without_a_hostname_the_guest_has_the_sandboxs_id(shim: Stack) -> None:
    await shim.create()
    assert shim.agent.hostname == "c1"
    assert [storage.driver for storage in shim.agent.storages] == ["virtio-fs", "ephemeral"]
