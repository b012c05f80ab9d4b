"""`kata-py exec`: a shell in a sandbox's guest, by the debug console of its agent (Kata's `kata-ctl exec`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

import click

from shim.cli import sandboxes
from shim.cli.sandboxes import Sandbox
from shim.config.load import DEFAULT_PATH
from shim.config.model import Config
from shim.errors import DeadlineExceeded, FailedPrecondition, ShimError, Unimplemented
from shim.pb.kata_py.guest import GuestStub, ResizeConsoleRequest, WaitConsoleRequest
from shim.ttrpc.channel import Channel
from shim.vsock.api import AGENT_PORT, SOCKET_NAME
from shim.vsock.client import DeviceClient

_CONNECT_S = 3.0
# What a terminal takes for it. One that is typed before the shell reads is lost, as at any terminal: once more, then.
_END_OF_INPUT, _AGAIN_S = b"\x04", 0.5


@click.command("exec")
@sandboxes.argument
@sandboxes.namespace_option
@click.option("--port", type=click.IntRange(1, 0xFFFF_FFFE), help="The guest's port, if not the setting's.")
def exec_command(sandbox: str, namespace: str | None, port: int | None) -> int:
    """Open a root shell in the guest: not in a container, but where the agent runs.

    The sandbox must have been started with the setting debug_console = true. Input that is no terminal is typed
    into the shell; its end ends the shell. The exit status is the shell's, or 0 with Kata's agent, which does not tell.
    """
    record = sandboxes.pick(sandbox, namespace)
    (found,) = sandboxes.look([record])
    device = DeviceClient(Path(record.run_dir, SOCKET_NAME))
    with _raw_terminal():
        return asyncio.run(_shell(device, port or _port(found)))


async def _shell(device: DeviceClient, port: int) -> int:
    """The exit status of a shell that our stdin and stdout are joined with."""
    connection, host_port = await device.open(port, _CONNECT_S)
    connection.setblocking(True)
    with connection:
        agent = await Channel.connect(await device.connect(AGENT_PORT, _CONNECT_S))
        guest = GuestStub(agent)  # type: ignore[arg-type]
        ended = asyncio.create_task(guest.wait_console(WaitConsoleRequest(host_port), timeout=None))
        resizing = asyncio.create_task(_resize(guest, host_port))
        try:
            await asyncio.to_thread(_copy, connection)
            async with asyncio.timeout(_CONNECT_S):
                return (await ended).status & 0xFF
        except Unimplemented:
            return 0
        except TimeoutError as error:
            raise DeadlineExceeded("the agent does not tell how the shell has ended") from error
        finally:
            ended.cancel()
            resizing.cancel()
            await agent.aclose()
            with contextlib.suppress(OSError):  # so that a copying that was interrupted ends
                connection.shutdown(socket.SHUT_RDWR)


async def _resize(guest: GuestStub, host_port: int) -> None:
    """Tell the shell's terminal the size of ours, now and whenever it changes."""
    if not sys.stdin.isatty():
        return
    changed = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGWINCH, changed.set)
    while True:
        columns, rows = os.get_terminal_size(0)
        with contextlib.suppress(ShimError):  # the genuine agent's has a size of its own
            await guest.resize_console(ResizeConsoleRequest(host_port, rows, columns), timeout=_CONNECT_S)
        await changed.wait()
        changed.clear()


def _port(sandbox: Sandbox) -> int:
    """The setting's. FailedPrecondition when the sandbox was started without a console; a shim that does not
    answer says nothing, and the usual port is tried."""
    if sandbox.live is None:
        return Config().debug_console_vport
    settings = {item.key: item.value for item in sandbox.live.settings}
    if settings["debug_console"] != "true":
        raise FailedPrecondition(
            f"sandbox {sandbox.record.sandbox_id} has no debug console: set debug_console = true, for instance in "
            f"{DEFAULT_PATH}, before it is started"
        )
    return int(settings["debug_console_vport"])


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the shell, Ctrl-C too."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _copy(connection: socket.socket) -> None:
    """Until the shell's end of the connection closes."""
    sources = [connection.fileno(), 0]
    while True:
        ready, _, _ = select.select(sources, [], [], None if 0 in sources else _AGAIN_S)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                sources.remove(0)
            _type(connection, data or _END_OF_INPUT)
        elif not ready:
            _type(connection, _END_OF_INPUT)
        if connection.fileno() in ready:
            try:
                data = connection.recv(65536)
            except ConnectionResetError:
                return
            if not data:
                return
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _type(connection: socket.socket, data: bytes) -> None:
    """A shell that has gone is no error here: what it said is still to be read."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.sendall(data)
