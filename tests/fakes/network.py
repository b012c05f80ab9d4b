"""The host's network namespaces without any: what is found is given, what is made are sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from shim.errors import ShimError
from shim.network.api import Attachment, Network


class FakeHostNetwork:
    """Implements `network.api.HostNetwork`; `Netns` too, for there is one.

    `fail` maps the name of a method to the error it raises. `calls` lists what was done: "enter:<path>", "scan",
    "attach". A tap is one end of a pipe, the listener one on the test's own loopback. `present` are the names that
    `links` tells.
    """

    def __init__(self, fail: Mapping[str, ShimError] | None = None) -> None:
        self.network, self.fail = Network(), dict(fail or {})
        self.present: list[str] = []
        self.calls: list[str] = []
        self.port = 0  # of the listener

    @asynccontextmanager
    async def enter(self, netns: str) -> AsyncIterator[FakeHostNetwork]:
        self._do("enter", f"enter:{netns}")
        yield self

    def links(self, pid: int) -> Sequence[str]:
        return self.present

    async def scan(self) -> Network:
        self._do("scan", "scan")
        return self.network

    async def attach(self, network: Network) -> Attachment:
        self._do("attach", "attach")
        taps = tuple(_descriptor() for _ in network.endpoints)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        return Attachment(taps, listener.detach(), _descriptor())

    def _do(self, method: str, call: str) -> None:
        self.calls.append(call)
        if method in self.fail:
            raise self.fail[method]


def _descriptor() -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader
