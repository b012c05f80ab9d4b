"""The host's network namespaces, entered by a child process (`worker`) that is asked over a socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from shim.children import Child, spawn
from shim.errors import DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound
from shim.log import Log
from shim.network.api import Attachment, Network
from shim.network.plan import Found, plan

_ANSWER_S = 10.0
_END_S = 1.0
_MESSAGE_LIMIT = 1 << 20
_MAX_FDS = 64
_OURS = "/proc/self/ns/net"


def pod_path(path: str | None) -> str:
    """The path of the pod's namespace, as its spec has it: "" is a new one. FailedPrecondition for the host's own,
    which a spec without a namespace (None) means too; NotFound and InvalidArgument for a path of none."""
    if path is None:
        raise FailedPrecondition(_HOST_NETWORK.format("has no network namespace"))
    if not path:
        return ""
    try:
        stat, ours = os.stat(path), os.stat(_OURS)
    except OSError as error:
        raise NotFound(f"network namespace {path}: {error.strerror}") from error
    if (stat.st_dev, stat.st_ino) == (ours.st_dev, ours.st_ino):
        raise FailedPrecondition(_HOST_NETWORK.format(f"names the host's network namespace, {path}"))
    if stat.st_dev != ours.st_dev:
        raise InvalidArgument(f"{path} is no network namespace")
    return path


_HOST_NETWORK = (
    "the spec {}: a VM cannot use the host's network; run this container without host network, "
    "or with another runtime"
)


class HostNamespaces:
    """Implements `api.HostNetwork`. `program` is kata-py-netns."""

    def __init__(self, program: Path, log: Log) -> None:
        self._program, self._log = program, log

    @asynccontextmanager
    async def enter(self, netns: str) -> AsyncIterator[Worker]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with ours:
            with theirs:
                argv = ["nsenter", f"--net={netns}", "--", str(self._program), str(theirs.fileno())]
                child = spawn(argv, pass_fds=(theirs.fileno(),), on_line=self._on_line)
            try:
                yield Worker(ours, child)
            finally:
                ours.close()
                await child.terminate(_END_S)

    def _on_line(self, line: str) -> None:
        self._log.warning("network namespace", line=line)

    def links(self, pid: int) -> Sequence[str]:
        try:
            with open(f"/proc/{pid}/net/dev") as file:
                lines = file.read().splitlines()[2:]  # two lines of headings
        except (FileNotFoundError, ProcessLookupError):
            return ()
        except OSError as error:
            raise Internal(f"the interfaces of process {pid}: {error.strerror}") from error
        return [name for line in lines if (name := line.partition(":")[0].strip()) != "lo"]


class Worker:
    """Implements `api.Netns`."""

    def __init__(self, sock: socket.socket, child: Child) -> None:
        self._sock, self._child = sock, child

    async def scan(self) -> Network:
        answer, _ = await self._ask({"do": "scan"})
        return plan(Found(answer["links"], answer["routes"], answer["routes6"], answer["neighbours"]))

    async def attach(self, network: Network) -> Attachment:
        pairs = [[e.interface.name, e.tap, e.interface.mtu] for e in network.endpoints]
        answer, fds = await self._ask({"do": "attach", "pairs": pairs})
        taps, (loopback, redirect) = tuple(fds[: len(pairs)]), fds[len(pairs) :] or (-1, -1)
        return Attachment(taps, loopback, redirect, answer["refused"])

    async def _ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[int]]:
        try:
            async with asyncio.timeout(_ANSWER_S):
                self._sock.send(json.dumps(request).encode())
                await self._readable()
                data, fds, _, _ = socket.recv_fds(self._sock, _MESSAGE_LIMIT, _MAX_FDS)
                if not data:
                    raise ConnectionResetError
        except TimeoutError:
            raise DeadlineExceeded(f"the network namespace: no answer in {_ANSWER_S:g} s") from None
        except OSError:  # it has ended, or is about to: nobody else holds its end
            await self._child.terminate(_END_S)
            raise self._child.failure() from None
        answer: dict[str, Any] = json.loads(data)
        if "error" in answer:
            raise Internal(f"the network namespace: {answer['error']}")
        return answer, fds

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(self._sock, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(self._sock)
