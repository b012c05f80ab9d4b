"""Which namespaces a VM may have, and the child process that is asked about them."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from pathlib import Path

import pytest

from shim.errors import ChildFailed, FailedPrecondition, Internal, InvalidArgument, NotFound, ShimError
from shim.log import Log
from shim.network.api import Network
from shim.network.netns import HostNamespaces, pod_path
from tests.guest.loop import go

OWN = "/proc/self/ns/net"


def test_a_new_namespace_has_no_path() -> None:
    assert pod_path("") == ""


@pytest.mark.parametrize("path", [None, OWN, f"/proc/{os.getpid()}/ns/net"])
def test_the_host_s_network_is_refused(path: str | None) -> None:
    with pytest.raises(FailedPrecondition, match="host's network"):
        pod_path(path)


def test_a_path_of_nothing_or_of_no_namespace_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="/no/such"):
        pod_path("/no/such")
    with pytest.raises(InvalidArgument, match=str(tmp_path)):
        pod_path(str(tmp_path))


def test_the_loopback_is_not_among_the_links_of_a_process() -> None:
    host = HostNamespaces(Path("/none"), Log(2))
    assert "lo" not in host.links(os.getpid())
    assert host.links(2**22 + 1) == ()


def worker(directory: Path, body: str) -> HostNamespaces:
    """A program that answers as `body` says: `answer(request)` gives bytes and descriptors."""
    program = directory / "worker"
    text = f"""\
    #!{sys.executable} -IS
    import json, os, socket, sys
    caller = socket.socket(fileno=int(sys.argv[1]))
    while request := caller.recv(65536):
        {body}
    """
    program.write_text(textwrap.dedent(text))
    program.chmod(0o755)
    return HostNamespaces(program, Log(2, "error"))


def test_what_it_finds_is_planned_and_descriptors_come_with_the_answer(tmp_path: Path) -> None:
    body = (
        'socket.send_fds(caller, [b\'{"taps": 0, "refused": ""}\'], [0, 1]) if b"attach" in request else '
        'caller.send(b\'{"links": [], "routes": [], "routes6": [], "neighbours": []}\')'
    )

    async def scenario() -> None:
        async with worker(tmp_path, body).enter(OWN) as netns:
            assert await netns.scan() == Network()
            attachment = await netns.attach(Network())
        assert attachment.taps == () and attachment.refused == ""
        for fd in (attachment.loopback, attachment.redirect):
            os.close(fd)

    go(scenario)


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        ('caller.send(b\'{"error": "tc: no"}\')', Internal, "tc: no"),
        ("sys.exit('cannot')", ChildFailed, "cannot"),
    ],
)
def test_its_failure_has_its_words(tmp_path: Path, body: str, kind: type[ShimError], words: str) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, body).enter(OWN) as netns:
            with pytest.raises(kind, match=words):
                await netns.scan()

    go(scenario)


def test_a_namespace_that_is_gone_is_named(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, "pass").enter("/run/netns/none") as netns:
            with pytest.raises(ChildFailed, match="/run/netns/none"):
                await netns.scan()

    go(scenario)


def test_a_silent_child_is_ended_with_the_block(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with worker(tmp_path, "pass").enter(OWN) as netns:
            asking = asyncio.create_task(netns.scan())
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.wait([asking])

    go(scenario)
